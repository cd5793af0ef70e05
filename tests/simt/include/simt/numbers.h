// Small floating-point formats, from their definitions: sign, exponent, fraction. Rounding is to nearest, ties to even.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace simt {

struct Format {
  int exponent_bits, fraction_bits;
  bool has_infinity;  // else all of the largest exponent but all ones is finite (OCP 8-bit E4M3)
};

constexpr Format kFloat{8, 23, true}, kHalf{5, 10, true}, kBFloat16{8, 7, true}, kE4M3{4, 3, false}, kE5M2{5, 2, true};

constexpr int bias(Format f) { return (1 << (f.exponent_bits - 1)) - 1; }
constexpr uint32_t all_ones(Format f) { return (1u << (f.exponent_bits + f.fraction_bits)) - 1; }
constexpr uint32_t infinity_bits(Format f) { return all_ones(f) - ((1u << f.fraction_bits) - 1); }
constexpr uint32_t nan_bits(Format f) { return all_ones(f); }
constexpr uint32_t max_bits(Format f) { return (f.has_infinity ? infinity_bits(f) : all_ones(f)) - 1; }

// `saturate`: what is too large becomes the largest finite number, infinities too. NaN has no sign, as on the GPU.
inline uint32_t encode(Format f, double x, bool saturate = false) {
  uint32_t sign = std::signbit(x) ? 1u << (f.exponent_bits + f.fraction_bits) : 0;
  if (std::isnan(x)) return nan_bits(f);
  double magnitude = std::fabs(x);
  uint32_t overflow = saturate ? max_bits(f) : f.has_infinity ? infinity_bits(f) : nan_bits(f);
  if (std::isinf(x)) return sign | overflow;
  if (magnitude == 0) return sign;
  int exponent = std::ilogb(magnitude), smallest = 1 - bias(f);
  if (exponent > bias(f) + 1) return sign | overflow;
  if (exponent < smallest) exponent = smallest;
  // In units of the last place; nearbyint rounds ties to even. A carry out of the fraction lands in the exponent.
  auto units = static_cast<uint64_t>(std::nearbyint(std::ldexp(magnitude, f.fraction_bits - exponent)));
  uint64_t bits = (static_cast<uint64_t>(exponent - smallest) << f.fraction_bits) + units;
  return sign | (bits > max_bits(f) ? overflow : static_cast<uint32_t>(bits));
}

// The same for a float, quicker where the result is normal.
inline uint32_t encode(Format f, float x, bool saturate = false) {
  auto bits = std::bit_cast<uint32_t>(x);
  uint32_t magnitude = bits & 0x7fffffff, dropped = 23 - f.fraction_bits;
  uint32_t rounded = magnitude + (1u << (dropped - 1)) - 1 + (magnitude >> dropped & 1);
  uint32_t exponent = rounded >> 23, offset = 127 - bias(f);
  if (magnitude >> 23 <= offset || exponent >= offset + bias(f)) return encode(f, double{x}, saturate);
  return bits >> 31 << (f.exponent_bits + f.fraction_bits) | ((rounded >> dropped) - (offset << f.fraction_bits));
}

inline float decode(Format f, uint32_t bits) {
  uint32_t magnitude = bits & all_ones(f), negative = bits >> (f.exponent_bits + f.fraction_bits) & 1;
  float value;
  if (magnitude > (f.has_infinity ? infinity_bits(f) : max_bits(f))) {
    value = NAN;
  } else if (f.has_infinity && magnitude == infinity_bits(f)) {
    value = INFINITY;
  } else if (magnitude >> f.fraction_bits) {
    value = std::bit_cast<float>((magnitude << (23 - f.fraction_bits)) + ((127u - bias(f)) << 23));
  } else {
    value = std::ldexp(static_cast<float>(magnitude), 1 - bias(f) - f.fraction_bits);
  }
  return negative ? -value : value;
}

// The power of two that a number's first bit, which subnormal ones lack, stands for; of zero one below all others.
constexpr int kZeroExponent = -4096;
inline int exponent_of(Format f, uint32_t bits) {
  uint32_t magnitude = bits & all_ones(f), stored = magnitude >> f.fraction_bits;
  return magnitude == 0 ? kZeroExponent : static_cast<int>(stored != 0 ? stored : 1) - bias(f);
}

// a * b + c rounded once to odd in 53 bits, so that a second rounding to any small format is still correct.
inline double fma_to_odd(double a, double b, double c) {
  double product = a * b;  // exact: both have at most 24 significant bits
  double sum = product + c;
  double carried = sum - product, lost = (product - (sum - carried)) + (c - carried);
  if (lost != 0 && std::isfinite(sum)) {
    auto bits = std::bit_cast<uint64_t>(sum);
    if (!(bits & 1)) sum = std::bit_cast<double>((lost > 0) == (sum > 0) ? bits + 1 : bits - 1);
  }
  return sum;
}

}  // namespace simt
