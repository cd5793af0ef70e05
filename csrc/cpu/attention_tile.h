// The two register-blocked products of attention: scores of query rows against sixteen tokens a column, and the sum of
// values weighted by probabilities. Each element of a result is one chain of sums in ascending depth (or token),
// whatever rows and columns share the registers.
#pragma once

#include "cpu/vec_int.h"
#include "pybatch/attention.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int kRows = 6;  // rows in registers at once
#if defined(PYBATCH_ANY_AVX512)
constexpr int kColumns = 4;  // vectors in registers at once: 6 * 4 sums of 32 registers
#else
constexpr int kColumns = 1;  // a vector is two registers of 16, or four of 32
#endif

constexpr int64_t kGranule = 8;  // tokens that are always adjacent: the smallest block
constexpr int64_t kAhead = 8;    // granules between what is multiplied and what is fetched

template <int n>
struct Count {
  static constexpr int value = n;
};

// How many of the `left` rows to take next, so that the takes are even.
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

// Prefetches `bytes` into the L2 cache. L1 has too few outstanding misses to keep memory busy.
template <int64_t bytes>
PYBATCH_INLINE void fetch(const void* p) {
#pragma GCC unroll 4
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 2);
}

// The granules of one list of tokens, and those to be fetched while each is multiplied. Keys: element d of a granule
// is at d * block_size. Values: tokens are `depth` apart. A prefetched piece has kGranule * depth elements.
template <class T>
struct Granules {
  const T* const* at;
  const T* const* next;
  int64_t offset;  // in elements, of the head
};

// How many elements of a head a T holds, and how many T one token has side by side in K.
template <class T>
constexpr int64_t kElements = 1;
template <class T>
constexpr int64_t kKeyRun = 1;

// How many tokens go through scores, softmax and weighing together, at positions that are multiples of it: of a
// quantised cache so few that all of it stays in the L1 cache, for all heads of a block.
template <class T>
constexpr int64_t kPart = sizeof(T) == 1 ? 128 : kAttentionSplit;
template <class T>
constexpr int64_t kPartGranules = kPart<T> / kGranule;

// For each row of a quantised cache: what the sums so far are multiplied by, and the integer sums that are added.
struct Rescale {
  const float* keep;
  const float* scale;
  int64_t scale_stride;
};
PYBATCH_INLINE void add_scaled(float* to, I32x16 sum, float scale, float keep) {
  store(to, fma(to_float(sum), broadcast(scale), load(to) * broadcast(keep)));
}

// How keys and values of type T are multiplied: kStep of depth, or tokens, at a time. Those of quantised caches are in
// attention_int8.h and attention_int4.h.
template <class T>
struct Product {
  using Sum = F32x16;
  static constexpr int kStep = 1;
  static PYBATCH_INLINE void store_sum(float* p, Sum sum) { store(p, sum); }
  static PYBATCH_INLINE F32x16 multiplier(const float* row, int64_t i) { return broadcast(row[i]); }
  // Sixteen columns, in one or two pieces; those of the next step are `stride` further.
  static PYBATCH_INLINE F32x16 columns(const T* p, int64_t) { return load(p); }
  static PYBATCH_INLINE F32x16 columns(const T* lo, const T* hi, int64_t) { return load_halves(lo, hi); }
  static PYBATCH_INLINE Sum multiply_add(F32x16 x, F32x16 y, Sum sum) { return fma(x, y, sum); }
};

// The sums of a block of rows and columns, in registers.
template <class Product, int rows, int columns>
struct Sums {
  typename Product::Sum sum[rows][columns];

  PYBATCH_INLINE void load(const float* from, int64_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum[r][c] = cpu::PYBATCH_ISA_NAMESPACE::load(from + r * stride + c * kLanes);
    }
  }
  PYBATCH_INLINE void store(float* to, int64_t stride) const {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) Product::store_sum(to + r * stride + c * kLanes, sum[r][c]);
    }
  }
  PYBATCH_INLINE void add_to(float* to, int64_t stride, const Rescale& by) const {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        add_scaled(to + r * stride + c * kLanes, sum[r][c], by.scale[r * by.scale_stride], by.keep[r]);
      }
    }
  }
  // Adds the products of one step, the i-th of every row.
  template <class Columns>
  PYBATCH_INLINE void add(const float* row, int64_t stride, int64_t i, const Columns (&y)[columns]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const auto x = Product::multiplier(row + r * stride, i);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum[r][c] = Product::multiply_add(x, y[c], sum[r][c]);
    }
  }
};

// out[r][c] = sum over d of q[r][d] * k[c][d]; two granules a column. split: they are not adjacent.
template <int rows, int columns, bool split, class T>
__attribute__((noinline)) void scores(const float* q, int64_t q_stride, Granules<T> k, int64_t k_stride, int64_t depth,
                                      float* out, int64_t out_stride) {
  using P = Product<T>;
  Sums<P, rows, columns> sums{};
  for (int64_t g = 0, d = 0; g < 2 * columns; ++g) {
    const T* next = k.next[g] + k.offset;
    for (const int64_t end = (g + 1) * depth / (2 * columns); d < end; d += P::kStep) {
      fetch<P::kStep * columns * kLanes * sizeof(T)>(next);
      next += P::kStep * columns * kLanes;
      const int64_t element = k.offset + d * k_stride;
      decltype(P::columns(next, k_stride)) keys[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        const T *lo = k.at[2 * c] + element, *hi = k.at[2 * c + 1] + element;
        keys[c] = split ? P::columns(lo, hi, k_stride) : P::columns(lo, k_stride);
      }
      sums.add(q, q_stride, d, keys);
    }
  }
  sums.store(out, out_stride);
}

// out[r][c] += sum over tokens begin .. end, multiples of a step, of p[r][token] * v[token][c]; integer sums (rescale)
// are scaled and added to what is kept. half: the column has only eight elements.
template <int rows, int columns, bool half, class T>
__attribute__((noinline)) void weigh(const float* p, int64_t p_stride, Granules<T> v, int64_t depth, int64_t column,
                                     int64_t begin, int64_t end, float* out, int64_t out_stride,
                                     const Rescale* rescale = nullptr) {
  using P = Product<T>;
  Sums<P, rows, columns> sums{};
  if constexpr (sizeof(T) > 1) sums.load(out + column, out_stride);
  for (int64_t token = begin; token < end;) {
    const int64_t granule = token / kGranule, next_granule = (granule + 1) * kGranule;
    const int64_t stop = next_granule < end ? next_granule : end;
    const int64_t offset = v.offset + (token - granule * kGranule) * depth + column;
    const T *value = v.at[granule] + offset, *next = v.next[granule] + offset;
    for (; token < stop; token += P::kStep, value += P::kStep * depth, next += P::kStep * depth) {
      decltype(P::columns(value, depth)) values[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        const T* at = value + c * kLanes;
        values[c] = half ? P::columns(at, at, depth) : P::columns(at, depth);
      }
      if (sizeof(T) > 1 || (column % 64 == 0 && token % kGranule >= kGranule / 2)) {  // or the softmax fetched them
#pragma GCC unroll 2
        for (int i = 0; i < P::kStep; ++i) fetch<columns * kLanes * sizeof(T)>(next + i * depth);
      }
      sums.add(p, p_stride, token, values);
    }
  }
  if constexpr (sizeof(T) > 1) {
    sums.store(out + column, out_stride);
  } else {
    sums.add_to(out + column, out_stride, *rescale);
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
