# The CPU kernels, compiled for each instruction set of the target's processors: an object library kernels_<set> each.
# Sets ISAS, KERNEL_OBJECTS, KERNEL_DEFINITIONS (for isa.cpp) and COMMON_SOURCES, which are compiled once.
include(CheckCXXSourceCompiles)
set(CPU ${CMAKE_CURRENT_LIST_DIR})
file(GLOB KERNEL_SOURCES CONFIGURE_DEPENDS ${CPU}/*.cpp)
set(COMMON_SOURCES ${CPU}/isa.cpp ${CPU}/parallel.cpp ${CPU}/ceilings.cpp ${CPU}/graph.cpp)
list(REMOVE_ITEM KERNEL_SOURCES ${COMMON_SOURCES})

# add_kernels(<set> SOURCES <source>... [FLAGS <flag>...])
function(add_kernels isa)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "SOURCES;FLAGS")
  string(TOUPPER PYBATCH_ISA_${isa} definition)
  add_library(kernels_${isa} OBJECT ${ARG_SOURCES})
  target_include_directories(kernels_${isa} PRIVATE ${CPU}/..)
  target_compile_options(kernels_${isa} PRIVATE ${ARG_FLAGS} -fno-math-errno -fno-trapping-math
                         $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized;-Wno-maybe-uninitialized>)  # false alarms in its own headers (PR105593)
  target_compile_definitions(kernels_${isa} PRIVATE ${definition})
endfunction()

# A compiler that fuses multiplies and adds at will breaks batch invariance: kernels say where they fuse.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-Wall;-Wextra>")

add_kernels(portable SOURCES ${KERNEL_SOURCES})
set(ISAS portable)
set(KERNEL_DEFINITIONS)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  # Few processors take it, and -O3 compiles half again as long; with -fgcse matmul_gguf.cpp does again, for nothing.
  target_compile_options(kernels_portable PRIVATE -O2 -fno-gcse)
  set(AVX2 -mavx2 -mfma -mf16c)
  add_kernels(avx2 SOURCES ${KERNEL_SOURCES} FLAGS ${AVX2})
  set(AVX512 ${AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mprefer-vector-width=512)
  add_kernels(avx512 SOURCES ${KERNEL_SOURCES} FLAGS ${AVX512})
  add_kernels(avx2_vnni FLAGS ${AVX2} -mavxvnni  # what multiplies integers: the others are avx2's (isa.cpp)
              SOURCES ${CPU}/matmul_w8a8.cpp ${CPU}/matmul_gguf.cpp ${CPU}/attention.cpp ${CPU}/ceiling_loop.cpp)
  list(APPEND ISAS avx2 avx2_vnni avx512)
  set(KERNEL_DEFINITIONS PYBATCH_X86)
  set(AMX -mamx-tile -mamx-int8 -mamx-bf16 -mavx512bf16)
  string(REPLACE ";" " " CMAKE_REQUIRED_FLAGS "${AMX}")
  check_cxx_source_compiles("#include <immintrin.h>\nint main() { _tile_release(); }" PYBATCH_COMPILES_AMX)
  unset(CMAKE_REQUIRED_FLAGS)
  if(PYBATCH_COMPILES_AMX AND CMAKE_SYSTEM_NAME STREQUAL "Linux")  # whose leave a process needs to use tiles
    add_kernels(amx FLAGS ${AVX512} ${AMX}  # what multiplies by tiles: the others are avx512's (isa.cpp)
                SOURCES ${CPU}/matmul_dense.cpp ${CPU}/matmul_w8a8.cpp ${CPU}/matmul_gguf.cpp ${CPU}/attention.cpp
                        ${CPU}/ceiling_loop.cpp)
    list(APPEND ISAS amx)
    list(APPEND KERNEL_DEFINITIONS PYBATCH_AMX)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
  add_kernels(neon SOURCES ${KERNEL_SOURCES} FLAGS -march=armv8-a)
  # What these add serves kernels that multiply bytes: the others are neon's (isa.cpp).
  add_kernels(neon_dotprod FLAGS -march=armv8.2-a+dotprod
              SOURCES ${CPU}/matmul_w8a8.cpp ${CPU}/matmul_gguf.cpp ${CPU}/ceiling_loop.cpp)
  add_kernels(neon_i8mm FLAGS -march=armv8.2-a+dotprod+i8mm SOURCES ${CPU}/matmul_w8a8.cpp ${CPU}/ceiling_loop.cpp)
  list(APPEND ISAS neon neon_dotprod neon_i8mm)
  set(KERNEL_DEFINITIONS PYBATCH_ARM)
endif()
list(TRANSFORM ISAS REPLACE "(.+)" "$<TARGET_OBJECTS:kernels_\\1>" OUTPUT_VARIABLE KERNEL_OBJECTS)

# Links the kernels into a target, after a look at what they would give the linker.
function(use_kernels target)
  target_sources(${target} PRIVATE ${COMMON_SOURCES} ${KERNEL_OBJECTS})
  target_include_directories(${target} PRIVATE ${CPU}/..)
  target_compile_definitions(${target} PRIVATE ${KERNEL_DEFINITIONS})
  foreach(isa IN LISTS ISAS)
    add_custom_command(TARGET ${target} PRE_LINK VERBATIM COMMAND ${CMAKE_COMMAND}
                       -D NM=${CMAKE_NM} -D NAMESPACE=pybatch::cpu::${isa}:: "-D OBJECTS=$<TARGET_OBJECTS:kernels_${isa}>"
                       -P ${CPU}/check_symbols.cmake)
  endforeach()
endfunction()
