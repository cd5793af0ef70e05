// The activation functions of MLPs.
#pragma once

#include "cuda/common.cuh"

namespace pybatch::cuda {

// x / (1 + e^-u), which is 0 where e^-u is infinite, x too.
__device__ __forceinline__ float times_sigmoid(float x, float u) {
  const float e = exp_approx(-u);
  return e == INFINITY ? 0.0f : x / (1.0f + e);
}

struct Silu {
  static __device__ __forceinline__ float apply(float x) { return times_sigmoid(x, x); }
};

struct GeluTanh {  // (1 + tanh u) / 2 is the sigmoid of 2u
  static __device__ __forceinline__ float apply(float x) {
    const float u = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
    return times_sigmoid(x, 2.0f * u);
  }
};

struct Gelu {  // 0 below -14, where it is less than any float32
  static __device__ __forceinline__ float apply(float x) {
    return x < -14.0f ? 0.0f : 0.5f * x * erfcf(-0.7071067811865476f * x);
  }
};

struct Relu2 {
  static __device__ __forceinline__ float apply(float x) { return x < 0.0f ? 0.0f : x * x; }
};

}  // namespace pybatch::cuda
