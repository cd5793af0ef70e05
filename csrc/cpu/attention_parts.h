// The softmax over a quantised cache, part by part of its tokens (Milakov & Gimelshein 2018): probabilities are
// relative to the largest score so far, and become words of 16 bits together with the scales of their values.
#pragma once

#include "cpu/attention_words.h"
#include "pybatch/head_dim.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Takes the maxima of rows on by the logits of a part. logits(i): a function of the row that gives its logits of the
// tokens from i on. keep: what sums so far are to be multiplied by. Rows that see no token of the part stay as they
// are.
template <int rows, class Logits>
void add_maxima(Range columns, const Range* ranges, const Logits& logits, float* max, float* keep) {
  F32x16 largest[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) largest[r] = broadcast(-__builtin_inff());
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
    const auto logits_of = logits(i);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) largest[r] = cpu::PYBATCH_ISA_NAMESPACE::max(largest[r], logits_of(r));
  }
  alignas(64) float fall[kLanes] = {};
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    if (ranges[r].begin >= ranges[r].end) continue;
    const float most = reduce_max(largest[r]), top = most > max[r] ? most : max[r];
    fall[r] = max[r] - top;
    max[r] = top;
  }
  store(fall, exp2(load(fall)));
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) keep[r] = fall[r];
}

// What makes words of probabilities times the scales of their values, where the largest such scale is `most`, and what
// a word stands for: NaN if a scale is not finite.
struct WordScale {
  float factor, step;

  template <class Scales>
  static WordScale of(Range columns, const Scales& v_scale) {
    I32x16 bits = broadcast_int(0);  // of the magnitude: those of inf and NaN are the largest
    for (int64_t i = columns.begin; i < columns.end; i += kLanes) bits = max(bits, float_bits(abs(v_scale(i))));
    const float most = as_float(static_cast<uint32_t>(reduce_max(bits)));
    return {word_factor(most), most / kLargestWord + most * 0.0f};
  }
};

// Turns rows of logits of a part into probabilities relative to `max`, adds them to `sum`, and rounds them, times the
// scales of their values in each group (v_scale(g)(i)), to words, relative to the largest scale that a row sees. Calls
// put(g, r, i, words) in ascending i, after row r of the same i was read. p_scale[r][g]: what a word stands for; -0
// where a row sees nothing, which adds nothing to any sum; NaN where a scale that it sees is not finite. Words are
// zeros outside a row's range. whole: all rows see all columns, as of most parts.
template <int rows, bool whole, class Scales, class Store, class Fetch>
void add_probabilities(const float* scores, int64_t stride, Range columns, const Range* ranges, int64_t groups,
                       const Scales& v_scale, const float* max, const float* keep, float* sum, float* p_scale,
                       const Store& put, const Fetch& fetch_ahead) {
  constexpr int64_t kMostGroups = kMaxHeadDim / kInt4Group;
  float factor[rows][kMostGroups];
  for (int64_t g = 0; g < groups; ++g) {
    const auto scale_at = v_scale(g);
    for (int r = 0; r < (whole ? 1 : rows); ++r) {
      const WordScale scale = WordScale::of(columns, [&](int64_t i) PYBATCH_INLINE_LAMBDA {
        return whole ? scale_at(i) : select_range(ranges[r], i, scale_at(i), zeros());
      });
      factor[r][g] = scale.factor;
      p_scale[r * groups + g] = whole || ranges[r].begin < ranges[r].end ? scale.step : -0.0f;
    }
    for (int r = 1; whole && r < rows; ++r) p_scale[r * groups + g] = p_scale[g];
  }
  float top[rows];
  F32x16 part[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    top[r] = ranges[r].begin < ranges[r].end ? max[r] : 0.0f;  // which may be -inf
    part[r] = zeros();
  }
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
    fetch_ahead(i);
    F32x16 e[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      e[r] = exp2(load(scores + r * stride + i) - broadcast(top[r]));
      part[r] = part[r] + e[r];
    }
    for (int64_t g = 0; g < groups; ++g) {
      const F32x16 scale = v_scale(g)(i), scaled = scale * broadcast(factor[0][g]);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const F32x16 own = whole ? scaled : select_range(ranges[r], i, scale, zeros()) * broadcast(factor[r][g]);
        put(g, r, i, to_int(e[r] * own));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) sum[r] = sum[r] * keep[r] + reduce_add(part[r]);
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
