# libplatter: all folders in one library, static (which the programs and tests link) and shared.

get_property(parts GLOBAL PROPERTY house_libraries)
get_property(links GLOBAL PROPERTY house_links)
list(REMOVE_DUPLICATES links)
set(objects "")
foreach(part IN LISTS parts)
    list(APPEND objects $<TARGET_OBJECTS:${part}>)
endforeach()

add_library(platter_static STATIC ${objects})
set_target_properties(platter_static PROPERTIES OUTPUT_NAME platter)
target_link_libraries(platter_static PUBLIC ${links})
target_link_libraries(platter_static PRIVATE platter_flags)

# block.h marks what is public (BLK_API); the version script lets nothing else slip out.
set(script ${CMAKE_CURRENT_LIST_DIR}/libplatter.map)
add_library(platter SHARED ${objects})
set_target_properties(platter PROPERTIES
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}
    LINK_DEPENDS ${script})
target_link_libraries(platter PRIVATE ${links} platter_flags)
target_link_options(platter PRIVATE -Wl,--version-script=${script} -Wl,-Bsymbolic-functions)
if(NOT PLATTER_SANITIZE)
    target_link_options(platter PRIVATE -Wl,-z,defs)
endif()

# Relative to the file itself, so that the installed tree may be moved.
file(RELATIVE_PATH up_to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(cmake/platter.pc.in platter.pc @ONLY)
install(TARGETS platter platter_static)
install(FILES block/block.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/platter/block)
install(FILES ${CMAKE_BINARY_DIR}/platter.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
