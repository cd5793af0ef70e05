// The 16-bit floats and pairs of them that cuda_fp16.h and cuda_bf16.h name. Every operation rounds once.
#pragma once

#include <cmath>
#include <cstdint>

#include "simt/numbers.h"

namespace simt {

struct Raw16 {
  unsigned short x;
};

template <Format kFormat>
struct alignas(2) Float16 {
  Float16() = default;
  Float16(float v) : bits(static_cast<uint16_t>(encode(kFormat, v))) {}
  Float16(Raw16 r) : bits(r.x) {}
  operator float() const { return decode(kFormat, bits); }
  operator Raw16() const { return {bits}; }
  static Float16 rounded(double v) { return Raw16{static_cast<unsigned short>(encode(kFormat, v))}; }
  uint16_t bits;
};

template <class T>
struct alignas(4) Pair {
  T x, y;
};

}  // namespace simt

template <simt::Format f>
simt::Float16<f> __hadd(simt::Float16<f> a, simt::Float16<f> b) {
  return simt::Float16<f>::rounded(double{float(a)} + float(b));
}
template <simt::Format f>
simt::Float16<f> __hsub(simt::Float16<f> a, simt::Float16<f> b) {
  return simt::Float16<f>::rounded(double{float(a)} - float(b));
}
template <simt::Format f>
simt::Float16<f> __hmul(simt::Float16<f> a, simt::Float16<f> b) {
  return simt::Float16<f>::rounded(double{float(a)} * float(b));
}
template <simt::Format f>
simt::Float16<f> __hfma(simt::Float16<f> a, simt::Float16<f> b, simt::Float16<f> c) {
  return simt::Float16<f>::rounded(simt::fma_to_odd(float(a), float(b), float(c)));
}

template <class T>
simt::Pair<T> __hsub2(simt::Pair<T> a, simt::Pair<T> b) {
  return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
template <class T>
simt::Pair<T> __hmul2(simt::Pair<T> a, simt::Pair<T> b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
