# Who may include what.
#
# No target has the repository as an include path. Each tier of headers is a folder of symbolic
# links in the build tree, and a target sees just the tiers it names:
#
#   base     ${build}/include/base/base/*.h        every internal target
#   public   ${build}/include/public/block/block.h core, formats, tools, exports, tests
#   driver   ${build}/include/driver/block/*.h     core and formats
#   partitions ${build}/include/partitions/...     exports, tools, tests
#   exports  ${build}/include/exports/exports/*.h  the programs
#   tools    ${build}/include/tools/tools/*.h      the programs
#
# A folder's own headers are included by plain name ("node.h") and seen by nobody else, because
# the compiler looks beside the including file first.

# house_headers(TIER FOLDER header...): publishes headers of this folder to a tier.
function(house_headers tier folder)
    set(farm ${CMAKE_BINARY_DIR}/include/${tier}/${folder})
    file(MAKE_DIRECTORY ${farm})
    set(names "")
    foreach(header IN LISTS ARGN)
        get_filename_component(name ${header} NAME)
        list(APPEND names ${name})
        file(CREATE_LINK ${header} ${farm}/${name} SYMBOLIC)
    endforeach()
    # A header that went away must not live on as a dangling link.
    file(GLOB links RELATIVE ${farm} ${farm}/*.h)
    foreach(link IN LISTS links)
        if(NOT EXISTS ${farm}/${link})
            file(REMOVE ${farm}/${link})
        endif()
    endforeach()
endfunction()

# house_use(TARGET tier...): the flags of the house and the tiers that the target may see.
function(house_use target)
    target_link_libraries(${target} PRIVATE platter_flags)
    foreach(tier IN LISTS ARGN)
        target_include_directories(${target} PRIVATE ${CMAKE_BINARY_DIR}/include/${tier})
    endforeach()
endfunction()

# house_library(NAME SEES tier... [LINKS library...] [SOURCES file...]): the static library of this
# folder, from all its .c files unless they are listed.
set_property(GLOBAL PROPERTY house_libraries "")
set_property(GLOBAL PROPERTY house_links "")
function(house_library name)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SEES;LINKS;SOURCES")
    set(sources ${arg_SOURCES})
    if(NOT sources)
        file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.c)
    endif()
    if(NOT sources)
        # A folder that is still empty makes an empty library.
        set(sources ${CMAKE_BINARY_DIR}/nothing.c)
        file(WRITE ${sources} "extern int platter_nothing;\n")
    endif()
    add_library(${name} STATIC ${sources})
    house_use(${name} ${arg_SEES})
    target_link_libraries(${name} PUBLIC ${arg_LINKS})
    set_property(GLOBAL APPEND PROPERTY house_libraries ${name})
    set_property(GLOBAL APPEND PROPERTY house_links ${arg_LINKS})
endfunction()
