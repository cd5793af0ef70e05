// What kernels include that is not theirs, for compile.py to have it parsed once. No guard: it is a main file.
#include <cuda_fp8.h>

#include <algorithm>
#include <cfloat>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda/launch.cuh"
#include "cuda/sm90/ptx.cuh"
