# Compiler flags of every target, carried by one interface library.

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_FLAGS_RELEASE "-O2 -g")
# Debug keeps the asserts and is what the sanitizers run on, so it must not crawl.
set(CMAKE_C_FLAGS_DEBUG "-O1 -g -fno-omit-frame-pointer")

add_library(platter_flags INTERFACE)
target_compile_definitions(platter_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)
target_compile_options(platter_flags INTERFACE
    -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
    -Wstrict-prototypes -Wmissing-prototypes -Wundef -Wpointer-arith -Wvla -Wwrite-strings -Wformat=2
    # clang asks for literals even of functions that take a va_list, gcc does not.
    $<$<C_COMPILER_ID:Clang>:-Wno-format-nonliteral>
    -fstack-protector-strong -fvisibility=hidden
    $<$<BOOL:${PLATTER_WERROR}>:-Werror>)

if(CMAKE_BUILD_TYPE STREQUAL "Debug")
    target_compile_definitions(platter_flags INTERFACE PLATTER_DEBUG=1)
endif()

if(PLATTER_SANITIZE STREQUAL "coverage")
    target_compile_options(platter_flags INTERFACE --coverage)
    target_link_options(platter_flags INTERFACE --coverage)
elseif(PLATTER_SANITIZE)
    # Undefined behaviour must end the program: a report that nobody reads is no report.
    set(sanitize -fsanitize=${PLATTER_SANITIZE})
    if(PLATTER_SANITIZE MATCHES "undefined")
        list(APPEND sanitize -fno-sanitize-recover=undefined)
    endif()
    target_compile_options(platter_flags INTERFACE ${sanitize})
    target_link_options(platter_flags INTERFACE ${sanitize})
else()
    # Fortified libc calls confuse the sanitizers' own checks, so only here.
    target_compile_options(platter_flags INTERFACE
        $<$<CONFIG:Release>:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>)
endif()

if(PLATTER_LTO)
    set(CMAKE_INTERPROCEDURAL_OPTIMIZATION ON)
endif()
