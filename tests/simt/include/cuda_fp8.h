// SIMT twin of cuda_fp8.h: the 8-bit formats of the Open Compute Project.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

struct __half2_raw {
  unsigned short x, y;
};

namespace simt {

constexpr Format format_of(__nv_fp8_interpretation_t kind) { return kind == __NV_E4M3 ? kE4M3 : kE5M2; }

template <__nv_fp8_interpretation_t kKind>
struct Fp8 {
  Fp8() = default;
  explicit Fp8(float v) : __x(static_cast<unsigned char>(encode(format_of(kKind), v, true))) {}
  explicit Fp8(__half v) : Fp8(static_cast<float>(v)) {}
  explicit Fp8(__nv_bfloat16 v) : Fp8(static_cast<float>(v)) {}
  explicit operator float() const { return decode(format_of(kKind), __x); }
  explicit operator __half() const { return __half(static_cast<float>(*this)); }
  explicit operator __nv_bfloat16() const { return __nv_bfloat16(static_cast<float>(*this)); }
  __nv_fp8_storage_t __x;
};

}  // namespace simt

using __nv_fp8_e4m3 = simt::Fp8<__NV_E4M3>;
using __nv_fp8_e5m2 = simt::Fp8<__NV_E5M2>;

inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float x, __nv_saturation_t saturation, __nv_fp8_interpretation_t kind) {
  return static_cast<__nv_fp8_storage_t>(simt::encode(simt::format_of(kind), x, saturation == __NV_SATFINITE));
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t saturation,
                                                     __nv_fp8_interpretation_t kind) {
  return static_cast<__nv_fp8x2_storage_t>(__nv_cvt_float_to_fp8(v.x, saturation, kind) |
                                           __nv_cvt_float_to_fp8(v.y, saturation, kind) << 8);
}
inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t x, __nv_fp8_interpretation_t kind) {
  return __half(simt::decode(simt::format_of(kind), x));
}
inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t x, __nv_fp8_interpretation_t kind) {
  return {__nv_cvt_fp8_to_halfraw(static_cast<unsigned char>(x), kind).x,
          __nv_cvt_fp8_to_halfraw(static_cast<unsigned char>(x >> 8), kind).x};
}
