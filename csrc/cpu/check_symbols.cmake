# Fails if one of OBJECTS (kernels compiled for one instruction set) gives the linker a symbol outside NAMESPACE. The
# linker keeps one copy of an inline function or template whoever compiled it: an AVX-512 copy of, say, a std:: template
# would then run on processors without AVX-512.
execute_process(COMMAND ${NM} --demangle --defined-only --extern-only ${OBJECTS}
                OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[0-9a-f]+ [A-Za-z] [^\n]+" symbols "${output}")
if(NOT symbols)
  message(FATAL_ERROR "${NM} lists no symbols in ${OBJECTS}")
endif()
list(FILTER symbols EXCLUDE REGEX "${NAMESPACE}|DW\\.ref\\.__gxx_personality_v0")  # a pointer, for destructors
if(symbols)
  list(JOIN symbols "\n  " symbols)
  message(FATAL_ERROR "Kernel objects define symbols outside ${NAMESPACE}\n  ${symbols}")
endif()
