// Softmax over a few rows of scores at once, in base two: queries are scaled by log2(e) beforehand, which saves a
// multiplication and the rounding errors of ln 2.
#pragma once

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504f;

// The tokens [begin, end) that a row sees, counted from the start of a split.
struct Range {
  int64_t begin, end;
};

// 2^x to about 1.5 ulp for x <= 0: x = n + r, a polynomial in r with the least relative error, times 2^n. NaN stays
// NaN; below -126 the result is exactly 0, so that a masked score of -inf adds nothing.
PYBATCH_INLINE F32x16 exp2(F32x16 x) {
  const F32x16 rounder = broadcast(kRounder), rounded = x + rounder, r = x - (rounded - rounder);
  F32x16 p = broadcast(1.3264727e-3f);
  p = fma(p, r, broadcast(9.671513e-3f));
  p = fma(p, r, broadcast(5.5507336e-2f));
  p = fma(p, r, broadcast(2.4022242e-1f));
  p = fma(p, r, broadcast(6.93147e-1f));
  p = fma(p, r, broadcast(1.0f));
  return zero_where_below(x, broadcast(-126.0f), p * power_of_two(rounded));
}

inline float exp2(float x) {
  float lanes[kLanes];
  store(lanes, exp2(broadcast(x)));
  return lanes[0];
}

// Caps scores at c * tanh(x / c), with tanh(y) = 1 - 2 / (exp(2y) + 1).
inline void soft_cap(float* scores, Range columns, float c) {
  const F32x16 one = broadcast(1.0f);
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
    const F32x16 e = exp(load(scores + i) * broadcast(2.0f / c));
    store(scores + i, broadcast(c) * (one - broadcast(2.0f) / (e + one)));
  }
}

// Lanes are tokens i, i + 1, ...: those in `range` come from a, the others from b.
PYBATCH_INLINE F32x16 select_range(Range range, int64_t i, F32x16 a, F32x16 b) {
  auto lanes = [](int64_t n) { return n < 0 ? 0 : n < kLanes ? n : kLanes; };
  return select_first(lanes(range.begin - i), b, select_first(lanes(range.end - i), a, b));
}

// Makes scores in `columns` but outside `range` -inf.
inline void mask(float* scores, Range columns, Range range) {
  auto mask_from = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) {
      store(scores + i, select_range(range, i, load(scores + i), broadcast(-__builtin_inff())));
    }
  };
  mask_from(columns.begin, range.begin);
  mask_from(range.end / kLanes * kLanes, columns.end);
}

// Turns rows of masked scores into probabilities relative to their own maximum, not yet divided by their sum, which is
// 0 where the range is empty. A row's result does not depend on the other rows: columns outside its range add nothing.
template <int rows>
void softmax_rows(float* scores, int64_t stride, Range columns, const Range* ranges, float* max_out, float* sum_out) {
  F32x16 largest[rows], sum[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) largest[r] = broadcast(-__builtin_inff());
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) largest[r] = max(largest[r], load(scores + r * stride + i));
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    max_out[r] = reduce_max(largest[r]);
    sum[r] = zeros();
  }
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32x16 e = exp2(load(scores + r * stride + i) - broadcast(max_out[r]));
      sum[r] = sum[r] + e;
      store(scores + r * stride + i, e);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sum_out[r] = ranges[r].begin < ranges[r].end ? reduce_add(sum[r]) : 0.0f;
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
