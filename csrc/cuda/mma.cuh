// Tensor-core arithmetic for the two 16-bit types alike, and int8 widened to them.
#pragma once

#include "cuda/common.cuh"

namespace pybatch::cuda {

template <class T>
struct Mma;  // d += a * b on 16x8x16; two floats or int8 numbers packed into one register

template <>
struct Mma<f16> {
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16_f16(d, a, b);
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // With 128 added, byte u put under 0x64 is the half 1024 + u.
  static __device__ __forceinline__ uint32_t widen(uint32_t bytes, uint32_t selector) {
    const uint32_t biased = prmt(bytes ^ 0x80808080u, 0x64646464u, selector);
    constexpr uint32_t kBias = 0x64806480u;  // 1024 + 128
    const __half2 pair = __hsub2(reinterpret_cast<const __half2&>(biased), reinterpret_cast<const __half2&>(kBias));
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

template <>
struct Mma<bf16> {
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16_bf16(d, a, b);
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // Under 0x43, the low seven bits of a byte make 128 + bits, and the sign bit alone makes 128 or 256.
  static __device__ __forceinline__ uint32_t widen(uint32_t bytes, uint32_t selector) {
    const uint32_t under = prmt(bytes, 0x43434343u, selector);
    const uint32_t bits = under & 0xff7fff7fu, sign = under & 0xff80ff80u;
    const __nv_bfloat162 pair =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), reinterpret_cast<const __nv_bfloat162&>(sign));
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

// Two int8 numbers of four as a pair of T, exactly.
template <class T>
__device__ __forceinline__ uint32_t widen_low(uint32_t bytes) {
  return Mma<T>::widen(bytes, 0x4140);
}
template <class T>
__device__ __forceinline__ uint32_t widen_high(uint32_t bytes) {
  return Mma<T>::widen(bytes, 0x4342);
}

}  // namespace pybatch::cuda
