// Tensor-core arithmetic for the two 16-bit types alike, and the 8-bit types widened to them.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"

namespace pybatch::cuda {

// exponent: its bits in both 16-bit floats of a pair; lowest: the lowest of them. Returns the top bits of those zeroed.
__device__ __forceinline__ uint32_t zero_where_exponent_is_full(uint32_t& pair, uint32_t exponent, uint32_t lowest) {
  const uint32_t full = ((pair & exponent) + lowest) & 0x80008000u;
  pair &= ~((full >> 15) * 0xffffu);
  return full;
}

template <class T>
struct Mma;  // d += a * b on 16x8x16; two numbers of T packed into one register

template <>
struct Mma<f16> {
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k16_f16(d, a, b);
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // Zeroes those of a pair that are inf or NaN; returns which.
  static __device__ __forceinline__ uint32_t zero_not_finite(uint32_t& pair) {
    return zero_where_exponent_is_full(pair, 0x7c007c00u, 0x04000400u);
  }
  // With 128 added, byte u put under 0x64 is the half 1024 + u.
  static __device__ __forceinline__ uint32_t widen(uint32_t bytes, uint32_t selector) {
    const uint32_t biased = prmt(bytes ^ 0x80808080u, 0x64646464u, selector);
    constexpr uint32_t kBias = 0x64806480u;  // 1024 + 128
    const __half2 pair = __hsub2(reinterpret_cast<const __half2&>(biased), reinterpret_cast<const __half2&>(kBias));
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // The same, of the lower bytes of both halves.
  static __device__ __forceinline__ uint32_t widen_lower(uint32_t halves) {
    constexpr uint32_t kBias = 0x64806480u;
    const uint32_t biased = and_xor(halves, 0x00ff00ffu, kBias);
    const __half2 pair = __hsub2(reinterpret_cast<const __half2&>(biased), reinterpret_cast<const __half2&>(kBias));
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // A signed nibble at the bottom of each half: with its sign bit flipped, which adds 8, under 0x6400.
  static __device__ __forceinline__ uint32_t widen_int4(uint32_t nibbles) {
    constexpr uint32_t kBias = 0x64086408u;  // 1024 + 8
    const uint32_t biased = (nibbles & 0x000f000fu) ^ kBias;
    const __half2 pair = __hsub2(reinterpret_cast<const __half2&>(biased), reinterpret_cast<const __half2&>(kBias));
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // e4m3 in the upper byte of each half: its exponent moved under that of a half is 8 too low.
  static __device__ __forceinline__ uint32_t widen_e4m3(uint32_t upper) {
    const uint32_t low = and_or(upper, 0x80008000u, upper >> 1 & 0x3f803f80u);
    constexpr uint32_t kFactor = 0x5c005c00u;  // 2^8
    const __half2 pair = __hmul2(reinterpret_cast<const __half2&>(low), reinterpret_cast<const __half2&>(kFactor));
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
  static __device__ __forceinline__ uint32_t zero_not_finite(uint32_t& pair) {
    return zero_where_exponent_is_full(pair, 0x7f807f80u, 0x00800080u);
  }
  // Under 0x43, the low seven bits of a byte make 128 + bits, and the sign bit alone makes 128 or 256.
  static __device__ __forceinline__ uint32_t widen(uint32_t bytes, uint32_t selector) {
    const uint32_t under = prmt(bytes, 0x43434343u, selector);
    const uint32_t bits = under & 0xff7fff7fu, sign = under & 0xff80ff80u;
    const __nv_bfloat162 pair =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), reinterpret_cast<const __nv_bfloat162&>(sign));
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // The same, of the lower bytes of both halves.
  static __device__ __forceinline__ uint32_t widen_lower(uint32_t halves) {
    const uint32_t bits = and_or(halves, 0x007f007fu, 0x43004300u), sign = and_or(halves, 0x00800080u, 0x43004300u);
    const __nv_bfloat162 pair =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(bits), reinterpret_cast<const __nv_bfloat162&>(sign));
    return reinterpret_cast<const uint32_t&>(pair);
  }
  static __device__ __forceinline__ uint32_t widen_int4(uint32_t nibbles) {
    constexpr uint32_t kBias = 0x43084308u;  // 128 + 8
    const uint32_t biased = (nibbles & 0x000f000fu) ^ kBias;
    const __nv_bfloat162 pair =
        __hsub2(reinterpret_cast<const __nv_bfloat162&>(biased), reinterpret_cast<const __nv_bfloat162&>(kBias));
    return reinterpret_cast<const uint32_t&>(pair);
  }
  // As for a half; the exponent is 120 too low.
  static __device__ __forceinline__ uint32_t widen_e4m3(uint32_t upper) {
    const uint32_t low = and_or(upper, 0x80008000u, upper >> 4 & 0x07f007f0u);
    constexpr uint32_t kFactor = 0x7b807b80u;  // 2^120
    const __nv_bfloat162 pair =
        __hmul2(reinterpret_cast<const __nv_bfloat162&>(low), reinterpret_cast<const __nv_bfloat162&>(kFactor));
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

// Two 8-bit numbers of four, the lower or the upper ones, as a pair of T, exactly.
template <class T, class Narrow>
__device__ __forceinline__ uint32_t widen_pair(uint32_t bytes, bool upper) {
  if constexpr (std::is_same_v<Narrow, e4m3>) {
    return Mma<T>::widen_e4m3(prmt(bytes, 0, upper ? 0x3322 : 0x1100));
  } else {
    return Mma<T>::widen(bytes, upper ? 0x4342 : 0x4140);
  }
}

// The lower, or the upper, 8-bit number of each half of a word as a pair of T, exactly.
template <class T, class Narrow>
__device__ __forceinline__ uint32_t widen_lower(uint32_t halves) {
  if constexpr (std::is_same_v<Narrow, e4m3>) {
    return Mma<T>::widen_e4m3(halves << 8);
  } else {
    return Mma<T>::widen_lower(halves);
  }
}
template <class T, class Narrow>
__device__ __forceinline__ uint32_t widen_upper(uint32_t halves) {
  if constexpr (std::is_same_v<Narrow, e4m3>) {
    return Mma<T>::widen_e4m3(halves);
  } else {
    return Mma<T>::widen_lower(halves >> 8);
  }
}

}  // namespace pybatch::cuda
