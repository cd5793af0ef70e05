// The two register-blocked products of attention: scores of query rows against sixteen tokens a column, and the sum of
// values weighted by probabilities. Each element of a result is one chain of fma in ascending depth (or token),
// whatever rows and columns share the registers.
#pragma once

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int kRows = 6;  // rows in registers at once
#if defined(PYBATCH_ISA_AVX512)
constexpr int kColumns = 4;  // vectors in registers at once: 6 * 4 sums of 32 registers
#else
constexpr int kColumns = 1;  // a vector is two registers of 16
#endif

constexpr int64_t kGranule = 8;  // tokens that surely lie side by side: the smallest block
constexpr int64_t kAhead = 8;    // granules between what is prefetched and what is multiplied

template <int n>
struct Count {
  static constexpr int value = n;
};

// How many of the `left` rows to take next, so that the last takes are not left with few.
PYBATCH_INLINE int64_t rows_at_once(int64_t left) {
  const int64_t takes = (left + kRows - 1) / kRows;
  return (left + takes - 1) / takes;
}

template <class F>
PYBATCH_INLINE void with_rows(int64_t rows, F&& f) {
  switch (rows) {
    case 1: return f(Count<1>{});
    case 2: return f(Count<2>{});
    case 3: return f(Count<3>{});
    case 4: return f(Count<4>{});
    case 5: return f(Count<5>{});
    default: return f(Count<kRows>{});
  }
}

// out[r][c] = sum over d of q[r][d] * k[c][d]. k: the granules of the columns, two a column; element d of a granule
// lies at d * k_stride. split: the two granules of a column lie apart. What lies kAhead granules on is prefetched from
// `ahead`, which has the layout of k.
template <int rows, int columns, bool split, class T>
void scores(const float* q, int64_t q_stride, const T* const* k, const T* const* ahead, int64_t k_stride, int64_t depth,
            float* out, int64_t out_stride) {
  F32x16 sum[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) sum[r][c] = zeros();
  }
  for (int64_t d = 0; d < depth; ++d) {
    F32x16 key[columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      const T* lo = k[2 * c] + d * k_stride;
      if constexpr (sizeof(T) < 4) __builtin_prefetch(ahead[2 * c] + d * k_stride);
      if constexpr (split) {
        key[c] = load_halves(lo, k[2 * c + 1] + d * k_stride);
      } else {
        key[c] = load(lo);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32x16 x = broadcast(q[r * q_stride + d]);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum[r][c] = fma(x, key[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) store(out + r * out_stride + c * kLanes, sum[r][c]);
  }
}

// out[r][c] += sum over tokens begin .. end of p[r][token] * v[token][c], in ascending order. v: the granules, a token
// every v_stride; half: the column has eight elements only.
template <int rows, int columns, bool half, class T>
void weigh(const float* p, int64_t p_stride, const T* const* v, const T* const* ahead, int64_t v_stride, int64_t column,
           int64_t begin, int64_t end, float* out, int64_t out_stride) {
  F32x16 sum[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) sum[r][c] = load(out + r * out_stride + column + c * kLanes);
  }
  for (int64_t token = begin; token < end;) {
    const int64_t granule = token / kGranule, next = (granule + 1) * kGranule, stop = next < end ? next : end;
    const int64_t offset = (token - granule * kGranule) * v_stride + column;
    const T *value = v[granule] + offset, *next_value = ahead[granule] + offset;
    for (; token < stop; ++token, value += v_stride, next_value += v_stride) {
      F32x16 x[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        if constexpr (half) {
          x[c] = load_halves(value, value);
        } else {
          x[c] = load(value + c * kLanes);
          if constexpr (sizeof(T) < 4) __builtin_prefetch(next_value + c * kLanes);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const F32x16 weight = broadcast(p[r * p_stride + token]);
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) sum[r][c] = fma(weight, x[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) store(out + r * out_stride + column + c * kLanes, sum[r][c]);
  }
}

// Scores of `count` rows, one block of rows, against the columns [0, columns) of k; sizes as in scores().
template <class T>
void score_rows(const float* q, int64_t q_stride, int64_t count, const T* const* k, const T* const* ahead,
                int64_t block_size, int64_t columns, int64_t depth, float* out, int64_t out_stride) {
  with_rows(count, [&]<int rows>(Count<rows>) {
    auto with = [&](auto kernel) { kernel(q, q_stride, k, ahead, block_size, depth, out, out_stride); };
    const bool wide = columns == kColumns, split = block_size == kGranule;
    if (wide) {
      split ? with(scores<rows, kColumns, true, T>) : with(scores<rows, kColumns, false, T>);
    } else {
      split ? with(scores<rows, 1, true, T>) : with(scores<rows, 1, false, T>);
    }
  });
}

// Adds the weighted values of tokens [begin, end) to `count` rows, one block of rows; sizes as in weigh().
template <class T>
void weigh_rows(const float* p, int64_t p_stride, int64_t count, const T* const* v, const T* const* ahead,
                int64_t depth, int64_t begin, int64_t end, float* out, int64_t out_stride) {
  if (begin >= end) return;
  with_rows(count, [&]<int rows>(Count<rows>) {
    auto with = [&](auto kernel, int64_t column) {
      kernel(p, p_stride, v, ahead, depth, column, begin, end, out, out_stride);
    };
    int64_t column = 0;
    for (; column + kColumns * kLanes <= depth; column += kColumns * kLanes) {
      with(weigh<rows, kColumns, false, T>, column);
    }
    for (; column + kLanes <= depth; column += kLanes) with(weigh<rows, 1, false, T>, column);
    if (column < depth) with(weigh<rows, 1, true, T>, column);
  });
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
