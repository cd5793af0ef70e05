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
constexpr int64_t kAhead = 8;    // granules between what is multiplied and what is fetched

template <int n>
struct Count {
  static constexpr int value = n;
};

// How many of the `left` rows to take next, so that the last takes are not left with few.
PYBATCH_INLINE int64_t rows_at_once(int64_t left) {
  const int64_t takes = (left + kRows - 1) / kRows;
  return (left + takes - 1) / takes;
}

// Calls f with n, from 1 to most, as a constant.
template <int most, class F>
PYBATCH_INLINE void with_count(int64_t n, F&& f) {
  if constexpr (most > 1) {
    if (n < most) return with_count<most - 1>(n, f);
  }
  f(Count<most>{});
}

// Asks for `bytes` to be in the second-level cache soon. The first level can wait for too few lines at a time to keep
// memory busy.
template <int64_t bytes>
PYBATCH_INLINE void fetch(const void* p) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

// The granules of one list of tokens, and those to be fetched while each is multiplied. Keys: element d of a granule
// lies d * block_size on. Values: a token lies depth on. What is fetched is one piece of kGranule * depth elements.
template <class T>
struct Granules {
  const T* const* at;
  const T* const* next;
  int64_t offset;  // in elements, of the head
};

// out[r][c] = sum over d of q[r][d] * k[c][d]; two granules a column. split: they lie apart.
template <int rows, int columns, bool split, class T>
void scores(const float* q, int64_t q_stride, Granules<T> k, int64_t k_stride, int64_t depth, float* out,
            int64_t out_stride) {
  F32x16 sum[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) sum[r][c] = zeros();
  }
  for (int64_t g = 0, d = 0; g < 2 * columns; ++g) {
    const T* next = k.next[g] + k.offset;
    for (const int64_t end = (g + 1) * depth / (2 * columns); d < end; ++d, next += columns * kLanes) {
      fetch<columns * kLanes * sizeof(T)>(next);
      F32x16 key[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        const int64_t element = k.offset + d * k_stride;
        if constexpr (split) {
          key[c] = load_halves(k.at[2 * c] + element, k.at[2 * c + 1] + element);
        } else {
          key[c] = load(k.at[2 * c] + element);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const F32x16 x = broadcast(q[r * q_stride + d]);
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) sum[r][c] = fma(x, key[c], sum[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) store(out + r * out_stride + c * kLanes, sum[r][c]);
  }
}

// out[r][c] += sum over tokens begin .. end of p[r][token] * v[token][c], in ascending order. half: the column has
// eight elements only.
template <int rows, int columns, bool half, class T>
void weigh(const float* p, int64_t p_stride, Granules<T> v, int64_t depth, int64_t column, int64_t begin, int64_t end,
           float* out, int64_t out_stride) {
  F32x16 sum[rows][columns];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) sum[r][c] = load(out + r * out_stride + column + c * kLanes);
  }
  for (int64_t token = begin; token < end;) {
    const int64_t granule = token / kGranule, next_granule = (granule + 1) * kGranule;
    const int64_t stop = next_granule < end ? next_granule : end;
    const int64_t offset = v.offset + (token - granule * kGranule) * depth + column;
    const T *value = v.at[granule] + offset, *next = v.next[granule] + offset;
    for (; token < stop; ++token, value += depth, next += depth) {
      F32x16 x[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        if constexpr (half) {
          x[c] = load_halves(value, value);
        } else {
          x[c] = load(value + c * kLanes);
        }
      }
      fetch<columns * kLanes * sizeof(T)>(next);
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

// Scores of `count` rows, one block of rows, against up to kColumns columns; sizes as in scores().
template <class T>
void score_rows(const float* q, int64_t q_stride, int64_t count, Granules<T> k, int64_t block_size, int64_t columns,
                int64_t depth, float* out, int64_t out_stride) {
  with_count<kRows>(count, [&]<int rows>(Count<rows>) {
    with_count<kColumns>(columns, [&]<int width>(Count<width>) {
      auto with = [&](auto kernel) { kernel(q, q_stride, k, block_size, depth, out, out_stride); };
      block_size == kGranule ? with(scores<rows, width, true, T>) : with(scores<rows, width, false, T>);
    });
  });
}

// Adds the weighted values of tokens [begin, end) to `count` rows, one block of rows; sizes as in weigh().
template <class T>
void weigh_rows(const float* p, int64_t p_stride, int64_t count, Granules<T> v, int64_t depth, int64_t begin,
                int64_t end, float* out, int64_t out_stride) {
  if (begin >= end) return;
  with_count<kRows>(count, [&]<int rows>(Count<rows>) {
    auto with = [&](auto kernel, int64_t column) {
      kernel(p, p_stride, v, depth, column, begin, end, out, out_stride);
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
