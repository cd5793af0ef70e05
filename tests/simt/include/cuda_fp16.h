// SIMT twin of cuda_fp16.h: IEEE 754 binary16.
#pragma once

#include <cuda_runtime.h>

#include "simt/float16.h"

using __half_raw = simt::Raw16;
using __half = simt::Float16<simt::kHalf>;
using __half2 = simt::Pair<__half>;

inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
