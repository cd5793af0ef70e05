# _C, the pybind11 module for what is no tensor op: one for each interpreter in PYBATCH_PYTHONS, side by side, of which a
# Python imports the one that is named for it. Of its interpreter a module takes headers alone.
set(PYBATCH_PYTHONS "" CACHE STRING "Python interpreters, a _C for each")
set(PYBIND11_NOPYTHON ON)  # its headers serve all of them
find_package(pybind11 CONFIG REQUIRED)
set(ABOUT_PYTHON "import sys, sysconfig as s; p = s.get_paths()
assert sys.version_info >= (3, 11), 'pybatch needs Python 3.11 or later'
print(s.get_config_var('EXT_SUFFIX'), p['include'], p['platinclude'], sep=';')")

function(add_modules)  # those of LIBRARIES that they link to, and where to install them
  cmake_parse_arguments(PARSE_ARGV 0 ARG "" "DESTINATION" "LIBRARIES")
  if(NOT PYBATCH_PYTHONS)
    message(FATAL_ERROR "PYBATCH_PYTHONS: expected one interpreter or more")
  endif()
  foreach(python IN LISTS PYBATCH_PYTHONS)
    execute_process(COMMAND ${python} -c "${ABOUT_PYTHON}" WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
                    OUTPUT_VARIABLE about ERROR_VARIABLE error RESULT_VARIABLE failed OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(failed)
      message(FATAL_ERROR "PYBATCH_PYTHONS: expected Python interpreters, got ${python}: ${error}${failed}")
    endif()
    list(POP_FRONT about suffix)
    list(GET about 0 include)
    if(NOT EXISTS ${include}/Python.h)
      message(FATAL_ERROR "PYBATCH_PYTHONS: ${python} has no headers: there is no ${include}/Python.h")
    endif()
    set(module _C${suffix})
    if(TARGET ${module})  # another interpreter of that version
      continue()
    endif()
    add_library(${module} MODULE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/module.cpp)
    target_include_directories(${module} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
    target_include_directories(${module} SYSTEM PRIVATE ${about})
    target_compile_definitions(${module} PRIVATE PYBATCH_VERSION="${PYBATCH_VERSION}"
                               PYBATCH_NO_CUDA="${PYBATCH_NO_CUDA}" PYBATCH_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}")
    target_compile_options(${module} PRIVATE $<$<CONFIG:Release>:-O1>)  # nothing in it takes time, but to compile
    target_link_libraries(${module} PRIVATE ${ARG_LIBRARIES} ${CMAKE_DL_LIBS} pybind11::headers)
    if(APPLE)
      target_link_options(${module} PRIVATE -undefined dynamic_lookup)
    endif()
    pybind11_strip(${module})
    set_target_properties(${module} PROPERTIES PREFIX "" SUFFIX "" INSTALL_RPATH "${ORIGIN}" BUILD_WITH_INSTALL_RPATH ON)
    install(TARGETS ${module} LIBRARY DESTINATION ${ARG_DESTINATION})
  endforeach()
endfunction()
