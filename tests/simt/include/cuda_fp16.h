// SIMT twin of cuda_fp16.h: IEEE 754 binary16. Every operation rounds once.
#pragma once

#include <cuda_runtime.h>

#include "simt/numbers.h"

struct __half_raw {
  unsigned short x;
};

struct alignas(2) __half {
  __half() = default;
  __half(float v) : bits(static_cast<uint16_t>(simt::encode(simt::kHalf, v))) {}
  __half(__half_raw r) : bits(r.x) {}
  operator float() const { return simt::decode(simt::kHalf, bits); }
  operator __half_raw() const { return {bits}; }
  static __half rounded(double v) { return __half_raw{static_cast<unsigned short>(simt::encode(simt::kHalf, v))}; }
  uint16_t bits;
};

struct alignas(4) __half2 {
  __half x, y;
};

inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float __half2float(__half x) { return x; }
inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __half2 __float2half2_rn(float v) { return {__half(v), __half(v)}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }

inline __half __hadd(__half a, __half b) { return __half::rounded(double{float(a)} + float(b)); }
inline __half __hsub(__half a, __half b) { return __half::rounded(double{float(a)} - float(b)); }
inline __half __hmul(__half a, __half b) { return __half::rounded(double{float(a)} * float(b)); }
inline __half __hfma(__half a, __half b, __half c) {
  return __half::rounded(simt::fma_to_odd(float(a), float(b), float(c)));
}
inline __half __hmax(__half a, __half b) { return fmaxf(a, b); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
