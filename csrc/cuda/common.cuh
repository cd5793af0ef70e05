// What every kernel needs: element types, runs of eight elements, sums and maxima over a warp or block.
// The build turns contraction off (--fmad=false), so arithmetic is fused only where fmaf says so.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda/ptx.cuh"
#include "pybatch/types.h"

namespace pybatch::cuda {

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.44269504088896341f;

using f16 = __half;
using bf16 = __nv_bfloat16;
struct e4m3 {
  __nv_fp8_storage_t bits;
};

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(int8_t x) { return static_cast<float>(x); }
// Its exponent under that of a float, 120 too low. The NaN code is read as 480.
__device__ __forceinline__ float to_float(e4m3 x) {
  return __uint_as_float((x.bits & 0x80u) << 24 | (x.bits & 0x7fu) << 20) * 0x1p120f;
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

template <>
__device__ __forceinline__ e4m3 from_float<e4m3>(float x) {
  return {__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3)};
}

// One element of a type known at run time.
__device__ __forceinline__ float load_as(DType type, const void* p, int64_t i) {
  switch (type) {
    case DType::f32: return static_cast<const float*>(p)[i];
    case DType::f16: return to_float(static_cast<const f16*>(p)[i]);
    case DType::bf16: return to_float(static_cast<const bf16*>(p)[i]);
    case DType::e4m3: return to_float(static_cast<const e4m3*>(p)[i]);
    default: return to_float(static_cast<const int8_t*>(p)[i]);
  }
}
__device__ __forceinline__ void store_as(DType type, void* p, int64_t i, float x) {
  switch (type) {
    case DType::f32: static_cast<float*>(p)[i] = x; return;
    case DType::f16: static_cast<f16*>(p)[i] = from_float<f16>(x); return;
    case DType::i8: static_cast<int8_t*>(p)[i] = static_cast<int8_t>(x); return;  // of a whole number
    case DType::e4m3: static_cast<e4m3*>(p)[i] = from_float<e4m3>(x); return;
    default: static_cast<bf16*>(p)[i] = from_float<bf16>(x); return;
  }
}

// The first statement of every kernel: what the kernels before it wrote is there from here on, and the next one may
// start its blocks, which wait here, so that one runs when the other ends and not a launch later. No block may leave it
// out, for a kernel that has ended has to stand for all before it.
__device__ __forceinline__ void begin_kernel() {
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
}

// ---- runs of eight elements: 16-byte accesses where the address allows ----

constexpr int kRun = 8;

template <class T>
__device__ __forceinline__ bool whole_and_aligned(const T* p, int64_t n) {
  return n >= kRun && reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// v = the first n of p[0..8), zeros after.
template <class T>
__device__ __forceinline__ void load_run(const T* p, int64_t n, float (&v)[kRun]) {
  if (whole_and_aligned(p, n)) {
    constexpr int kEach = 16 / sizeof(T);
    for (int i = 0; i < kRun / kEach; ++i) {
      const uint4 raw = load_global_16(p + i * kEach);
      const T* elements = reinterpret_cast<const T*>(&raw);
      for (int j = 0; j < kEach; ++j) v[i * kEach + j] = to_float(elements[j]);
    }
  } else {
    for (int i = 0; i < kRun; ++i) v[i] = i < n ? to_float(p[i]) : 0.0f;
  }
}

// p[0..8) = v, the first n of it.
template <class T>
__device__ __forceinline__ void store_run(T* p, int64_t n, const float (&v)[kRun]) {
  if (whole_and_aligned(p, n)) {
    constexpr int kEach = 16 / sizeof(T);
    for (int i = 0; i < kRun / kEach; ++i) {
      uint4 raw;
      T* elements = reinterpret_cast<T*>(&raw);
      for (int j = 0; j < kEach; ++j) elements[j] = from_float<T>(v[i * kEach + j]);
      store_global_16(p + i * kEach, raw);
    }
  } else {
    for (int i = 0; i < kRun; ++i) {
      if (i < n) p[i] = from_float<T>(v[i]);
    }
  }
}

// ---- reductions: every lane (thread) gets the result; the order is fixed ----

struct Add {
  template <class T>
  static __device__ __forceinline__ T apply(T a, T b) {
    return a + b;
  }
};
struct Largest {
  static __device__ __forceinline__ float apply(float a, float b) { return fmaxf(a, b); }
  static __device__ __forceinline__ uint64_t apply(uint64_t a, uint64_t b) { return a > b ? a : b; }
};
struct Smallest {
  static __device__ __forceinline__ uint64_t apply(uint64_t a, uint64_t b) { return a < b ? a : b; }
};

template <class Op, class T>
__device__ __forceinline__ T warp_reduce(T x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = Op::apply(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

// scratch: shared memory for one number a warp. All threads of the block call together.
template <class Op, class T>
__device__ __forceinline__ T block_reduce(T x, T* scratch) {
  x = warp_reduce<Op>(x);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = scratch[0];
  for (unsigned i = 1; i < blockDim.x / kWarp; ++i) x = Op::apply(x, scratch[i]);
  return x;
}

// Whether this block is the last of so many to come here, which count themselves in *finished, from 0 and at the end
// back to 0: it sees what the others have written. All threads of the block call it; scratch: shared memory.
__device__ __forceinline__ bool last_to_finish(int32_t* finished, int blocks, int32_t* scratch) {
  __threadfence();  // releases what the thread has written, ahead of the count
  __syncthreads();
  const auto last = static_cast<uint32_t>(blocks - 1);
  if (threadIdx.x == 0) *scratch = static_cast<int32_t>(atomicInc(reinterpret_cast<uint32_t*>(finished), last));
  __syncthreads();
  __threadfence();  // acquires what those that were counted have
  return *scratch == blocks - 1;
}

__device__ __forceinline__ float exp_approx(float x) { return ex2_approx(x * kLog2E); }

// ---- host: from a run-time type to a template argument ----

// Calls f with a typed null pointer that stands for the element type.
template <class F>
void with_float_type(DType type, const F& f) {
  switch (type) {
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f16: return f(static_cast<f16*>(nullptr));
    default: return f(static_cast<bf16*>(nullptr));
  }
}

template <class F>
void with_half_type(DType type, const F& f) {
  type == DType::f16 ? f(static_cast<f16*>(nullptr)) : f(static_cast<bf16*>(nullptr));
}

}  // namespace pybatch::cuda
