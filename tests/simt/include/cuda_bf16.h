// SIMT twin of cuda_bf16.h: bfloat16, the upper half of a float.
#pragma once

#include <cuda_runtime.h>

#include "simt/float16.h"

using __nv_bfloat16 = simt::Float16<simt::kBFloat16>;
using __nv_bfloat162 = simt::Pair<__nv_bfloat16>;

inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return simt::Raw16{bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
