// The softmax over a quantised cache, part by part of its tokens (Milakov & Gimelshein 2018): probabilities are
// relative to the largest score so far, and become words of 16 bits together with the scales of their values.
#pragma once

#include "cpu/attention_words.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Turns rows of integer scores into logits, in place. k_scale(i): the scales of the keys from token i on.
template <int rows, class Scales>
void scale_scores(float* scores, int64_t stride, Range columns, const float* q_scale, const Scales& k_scale) {
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
    const F32x16 scale = k_scale(i);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      float* at = scores + r * stride + i;
      store(at, to_float(load_ints(at)) * (scale * broadcast(q_scale[r])));
    }
  }
}

// Turns rows of masked scores of a part into probabilities relative to the row's maximum so far, and takes maxima and
// sums on. keep: what the sums before are to be multiplied by. Rows that see no token of the part stay as they are.
template <int rows>
void add_softmax(float* scores, int64_t stride, Range columns, const Range* ranges, float* max, float* sum,
                 float* keep) {
  F32x16 largest[rows], part[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    largest[r] = broadcast(-__builtin_inff());
    part[r] = zeros();
  }
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      largest[r] = cpu::PYBATCH_ISA_NAMESPACE::max(largest[r], load(scores + r * stride + i));
    }
  }
  alignas(64) float top[kLanes] = {}, fall[kLanes] = {};
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    if (ranges[r].begin >= ranges[r].end) continue;
    const float most = reduce_max(largest[r]);
    top[r] = most > max[r] ? most : max[r];
    fall[r] = max[r] - top[r];
    max[r] = top[r];
  }
  alignas(64) float kept[kLanes];
  store(kept, exp2(load(fall)));
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32x16 e = exp2(load(scores + r * stride + i) - broadcast(top[r]));
      part[r] = part[r] + e;
      store(scores + r * stride + i, e);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    sum[r] = sum[r] * kept[r] + reduce_add(part[r]);
    keep[r] = kept[r];
  }
}

// Rounds rows of probabilities, times the scales of their values, to words, relative to the largest scale that a row
// sees. Calls store(r, i, words) in ascending i, after row r of the same i was read. p_scale: every scale_stride-th,
// what a word stands for; -0 where a row sees nothing, which adds nothing to any sum; NaN where a scale that it sees is
// not finite. Words are zeros outside a row's range.
template <int rows, class Scales, class Store>
void narrow_probabilities(const float* p, int64_t stride, Range columns, const Range* ranges, const Scales& v_scale,
                          float* p_scale, int64_t scale_stride, const Store& store) {
  auto factor_of = [&](const auto& scale_at, float& step) PYBATCH_INLINE_LAMBDA {
    I32x16 bits = broadcast_int(0);  // of the magnitude: those of inf and NaN are the largest
    for (int64_t i = columns.begin; i < columns.end; i += kLanes) bits = max(bits, float_bits(abs(scale_at(i))));
    const float most = as_float(static_cast<uint32_t>(reduce_max(bits)));
    step = most / kLargestWord + most * 0.0f;
    return broadcast(word_factor(most));
  };
  if (ranges[rows - 1].begin <= columns.begin && columns.end <= ranges[0].end) {  // as most parts are, by all rows
    float step;
    const F32x16 factor = factor_of(v_scale, step);
    for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
      const F32x16 scale = v_scale(i) * factor;
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) store(r, i, to_int(load(p + r * stride + i) * scale));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) p_scale[r * scale_stride] = step;
    return;
  }
  for (int r = 0; r < rows; ++r) {
    auto seen = [&](int64_t i) PYBATCH_INLINE_LAMBDA { return select_range(ranges[r], i, v_scale(i), zeros()); };
    float& step = p_scale[r * scale_stride];
    const F32x16 factor = factor_of(seen, step);
    if (ranges[r].begin >= ranges[r].end) step = -0.0f;
    for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
      store(r, i, to_int(load(p + r * stride + i) * (seen(i) * factor)));
    }
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
