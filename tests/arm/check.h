// What the checks of kernels share: numbers from a seeded generator, arrays of any type, and the comparison of a
// kernel's rows with numbers worked out in float64, with themselves alone and with themselves on more threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "pybatch/parallel.h"

namespace check {

using namespace pybatch;

inline int threads = 1;
inline int failures = 0;
inline bool against_float64 = true;

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(static_cast<int64_t>(bits()) >> 40) * 0x1p-23; }  // in [-1, 1)
  double number() { return uniform() + uniform() + uniform(); }

 private:
  uint64_t state_;
};

constexpr DType kFloats[] = {DType::f32, DType::f16, DType::bf16};

inline const char* name_of(DType t) {
  constexpr const char* names[] = {"f32", "f16", "bf16", "i8", "e4m3", "i4"};
  return names[static_cast<int>(t)];
}

// Half a unit in the last place, relative; and the bits of fraction and exponent.
inline double rounding(DType t) { return t == DType::f32 ? 0x1p-24 : t == DType::f16 ? 0x1p-11 : 0x1p-8; }

// An array in memory, 64-byte aligned, seen as float64.
class Array {
 public:
  Array(DType dtype, int64_t size) : dtype(dtype), size(size), lines_(static_cast<size_t>(bytes() / 64 + 2)) {}
  Array(DType dtype, int64_t size, Random& random, double scale = 1.0) : Array(dtype, size) {
    for (int64_t i = 0; i < size; ++i) set(i, random.number() * scale);
  }

  const DType dtype;
  const int64_t size;
  int64_t bytes() const { return size * size_of(dtype); }
  char* data() { return lines_.data()->bytes; }
  const char* data() const { return lines_.data()->bytes; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data());
  }

  double operator[](int64_t i) const {
    const char* p = data() + i * size_of(dtype);
    if (dtype == DType::i8) return static_cast<int8_t>(*p);
    if (dtype == DType::f32) {
      float x;
      std::memcpy(&x, p, 4);
      return static_cast<double>(x);
    }
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    const int fraction = dtype == DType::f16 ? 10 : 7, bias = dtype == DType::f16 ? 15 : 127;
    const int exponent = (bits & 0x7fff) >> fraction, rest = bits & ((1 << fraction) - 1);
    double x = exponent == 0 ? std::ldexp(rest, 1 - bias - fraction)
                             : std::ldexp(rest + (1 << fraction), exponent - bias - fraction);
    if (exponent == 2 * bias + 1) x = rest == 0 ? INFINITY : NAN;
    return bits >> 15 ? -x : x;
  }

  void set(int64_t i, double x) {  // rounded to nearest, ties to even
    char* p = data() + i * size_of(dtype);
    if (dtype == DType::i8) {
      *p = static_cast<char>(static_cast<int>(x));
    } else if (dtype == DType::f32) {
      const auto narrow = static_cast<float>(x);
      std::memcpy(p, &narrow, 4);
    } else {
      const int fraction = dtype == DType::f16 ? 10 : 7, bias = dtype == DType::f16 ? 15 : 127;
      const double size = std::fabs(x);
      const int exponent = size == 0 ? 1 - bias : std::max(std::ilogb(size), 1 - bias);
      const double units = std::nearbyint(std::ldexp(size, fraction - exponent));
      // A fraction of 2^(fraction + 1) carries into the exponent, as it should; a subnormal has exponent bits 0.
      const double bits =
          std::min(units + std::ldexp(exponent + bias - 1, fraction), std::ldexp(2 * bias + 1, fraction));
      const auto whole = static_cast<uint16_t>((std::signbit(x) ? 0x8000 : 0) | static_cast<int>(bits));
      std::memcpy(p, &whole, 2);
    }
  }

  uint32_t word(int64_t i) const {  // the bits of element i, the same for every NaN
    uint32_t bits = 0;
    std::memcpy(&bits, data() + i * size_of(dtype), static_cast<size_t>(size_of(dtype)));
    return dtype != DType::i8 && std::isnan((*this)[i]) ? 0x7fc00000 : bits;
  }

 private:
  struct alignas(64) Line {
    char bytes[64] = {};
  };
  std::vector<Line> lines_;
};

__attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  if (++failures > 40) return;
  va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED ");
  std::vprintf(format, arguments);
  std::printf("\n");
  va_end(arguments);
}

// What is left of a case is compared between instruction sets by its digest (FNV-1a).
class Digest {
 public:
  explicit Digest(std::string name) : name_(std::move(name)) {}
  ~Digest() { std::printf("%s %016llx\n", name_.c_str(), static_cast<unsigned long long>(hash_)); }
  Digest(const Digest&) = delete;
  void add(uint64_t word) { hash_ = (hash_ ^ word) * 0x100000001b3; }
  void add(const Array& a) {
    for (int64_t i = 0; i < a.size; ++i) add(uint64_t{a.word(i)});
  }

 private:
  std::string name_;
  uint64_t hash_ = 0xcbf29ce484222325;
};

struct Near {
  double value, tolerance;
};

inline void expect_near(const std::string& name, int64_t row, int64_t column, double got, Near wanted) {
  if (got == wanted.value || std::fabs(got - wanted.value) <= wanted.tolerance) return;
  if (std::isnan(got) && std::isnan(wanted.value)) return;
  fail("%s: row %lld, column %lld is %.9g, not %.9g +- %.2g", name.c_str(), static_cast<long long>(row),
       static_cast<long long>(column), got, wanted.value, wanted.tolerance);
}

inline void expect_same(const std::string& name, const char* what, const Array& a, int64_t a_from, const Array& b,
                        int64_t b_from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (a.word(a_from + i) == b.word(b_from + i)) continue;
    return fail("%s: %s differs at element %lld: %.9g, not %.9g", name.c_str(), what,
                static_cast<long long>(b_from + i), a[a_from + i], b[b_from + i]);
  }
}

// run(first, count, out) computes rows [first, first + count) of a kernel into rows 0 .. count - 1 of out;
// wanted(row, column) says what it should be.
template <class Run, class Wanted>
void check_rows(const std::string& name, int64_t rows, int64_t width, DType dtype, const Run& run,
                const Wanted& wanted) {
  Array out(dtype, rows * width);
  run(0, rows, out);
  for (int64_t r = 0; against_float64 && r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) expect_near(name, r, c, out[r * width + c], wanted(r, c));
  }
  threads = 3;
  Array again(dtype, rows * width);
  run(0, rows, again);
  threads = 1;
  expect_same(name, "the result of three threads", again, 0, out, 0, rows * width);
  for (int64_t r = 0; r < rows; r += 1 + rows / 8) {
    Array alone(dtype, width);
    run(r, 1, alone);
    expect_same(name, "a row alone", alone, 0, out, r * width, width);
  }
  Digest(name).add(out);
}

void check_rows_kernels();
void check_matmuls();
void check_kv_cache();
void check_attention();
void check_linear_attention();
void check_low_rank();
void check_sampling();

}  // namespace check
