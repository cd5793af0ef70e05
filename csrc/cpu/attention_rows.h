// Calls the products of attention for as many rows and columns as there are.
#pragma once

#include "cpu/attention_bytes.h"
#include "cpu/attention_int4.h"
#include "cpu/attention_tile.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Scores of `count` rows, one block of rows, against up to kColumns columns; sizes as in scores().
template <class T>
void score_rows(const float* q, int64_t q_stride, int64_t count, Granules<T> k, int64_t block_size, int64_t columns,
                int64_t depth, float* out, int64_t out_stride) {
  with_count<kRows>(count, [&]<int rows>(Count<rows>) {
    with_count<kColumns>(columns, [&]<int width>(Count<width>) {
      if (block_size == kGranule) {
        scores<rows, width, true>(q, q_stride, k, block_size, depth, out, out_stride);
      } else {
        scores<rows, width, false>(q, q_stride, k, block_size, depth, out, out_stride);
      }
    });
  });
}

// Adds the weighted values of tokens [begin, end) to `count` rows, one block of rows; sizes as in weigh().
template <class T>
void weigh_rows(const float* p, int64_t p_stride, int64_t count, Granules<T> v, int64_t depth, int64_t begin,
                int64_t end, float* out, int64_t out_stride, const Rescale* rescale = nullptr) {
  if (begin >= end) return;
  with_count<kRows>(count, [&]<int rows>(Count<rows>) {
    int64_t column = 0;
    for (; column + kColumns * kLanes <= depth; column += kColumns * kLanes) {
      weigh<rows, kColumns, false>(p, p_stride, v, depth, column, begin, end, out, out_stride, rescale);
    }
    for (; column + kLanes <= depth; column += kLanes) {
      weigh<rows, 1, false>(p, p_stride, v, depth, column, begin, end, out, out_stride, rescale);
    }
    if (column < depth) weigh<rows, 1, true>(p, p_stride, v, depth, column, begin, end, out, out_stride, rescale);
  });
}

// The same over an int4 cache; sizes as in attention_int4.h.
template <class Scales>
void score_rows(const float* q, int64_t q_stride, int64_t count, Granules<i4x2> k, int64_t block_size, int64_t columns,
                int64_t depth, const float* q_scale, const Scales& k_scale, float* out, int64_t out_stride) {
  with_count<kRows>(count, [&]<int rows>(Count<rows>) {
    with_count<kColumns>(columns, [&]<int width>(Count<width>) {
      if (block_size == kGranule) {
        scores<rows, width, true>(q, q_stride, k, block_size, depth, q_scale, k_scale, out, out_stride);
      } else {
        scores<rows, width, false>(q, q_stride, k, block_size, depth, q_scale, k_scale, out, out_stride);
      }
    });
  });
}

// p: the words of one group after those of another.
inline void weigh_rows(const int16_t* p, int64_t p_stride, int64_t count, Granules<i4x2> v, int64_t depth,
                       int64_t begin, int64_t end, const Rescale& rescale, float* out, int64_t out_stride) {
  with_count<kRows>(count, [&]<int rows>(Count<rows>) {
    const float* scale = rescale.scale;
    for (int64_t group = 0; group < depth; group += kInt4Group, p += rows * p_stride, ++scale) {
      const int64_t elements = depth - group < kInt4Group ? depth - group : kInt4Group;
      alignas(64) int32_t sums[rows][kInt4Group];
      for_each_count<kCodes / kColumns>([&]<int part>(Count<part>) PYBATCH_INLINE_LAMBDA {
        constexpr int first = part * kColumns;
        if (elements == kInt4Group) {
          weigh<rows, first, kColumns, true>(p, p_stride, v, depth, group, begin, end, sums[0]);
        } else {
          weigh<rows, first, kColumns, false>(p, p_stride, v, depth, group, begin, end, sums[0]);
        }
      });
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < elements; i += kLanes) {  // past them there is room
          add_scaled(out + r * out_stride + group + i, load_ints(sums[r] + i), scale[r * rescale.scale_stride],
                     rescale.keep[r]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
