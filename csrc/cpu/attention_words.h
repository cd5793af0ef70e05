// What attention over int8 and int4 caches is in every instruction set: queries and probabilities become words of 16
// bits with a scale for each row, and words times codes are summed in 32 bits, exactly and so in any order.
#pragma once

#include "cpu/attention_softmax.h"
#include "cpu/attention_tile.h"
#include "cpu/vec_int.h"
#include "pybatch/attention.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr float kLargestWord = 32767.0f, kLargestFloat = 0x1.fffffep127f;
static_assert(kAttentionSplit * 32767 * 127 <= INT32_MAX, "a split of the largest words and codes fits its sum");

constexpr int kQuad = 4;  // tokens whose values are side by side in an int4 cache

// Two codes.
struct i4x2 {
  uint8_t codes;
};
template <>
inline constexpr int64_t kElements<i4x2> = 2;
template <>
inline constexpr int64_t kKeyRun<i4x2> = 4;

// x * factor as words, for factor = word_factor(the largest |x|). NaN becomes some word.
PYBATCH_INLINE float word_factor(float largest) {
  const float factor = kLargestWord / largest;
  return !(largest > 0) ? 0.0f : factor < kLargestFloat ? factor : kLargestFloat;
}
PYBATCH_INLINE I32x16 words_of(F32x16 x, F32x16 factor) {
  const F32x16 limit = broadcast(kLargestWord);
  return to_int(min(max(x * factor, zeros() - limit), limit));
}

// Rounds x[0..n) to words: x ~ word * scale. Calls store(i, words) for each vector in turn, and returns the scale: NaN
// if any x is not finite.
template <class Store>
float narrow(const float* x, int64_t n, const Store& store) {
  F32x16 largest = zeros(), bad = zeros();
  for (int64_t i = 0; i < n; i += kLanes) {
    largest = max(largest, abs(load(x + i)));
    bad = fma(load(x + i), zeros(), bad);
  }
  const float most = reduce_max(largest);
  const F32x16 factor = broadcast(word_factor(most));
  for (int64_t i = 0; i < n; i += kLanes) store(i, words_of(load(x + i), factor));
  return most / kLargestWord + reduce_add(bad);
}

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

// Rounds rows of probabilities, times the scales of their values, to words: zeros outside a row's range. Calls store(r,
// i, words) in ascending i, after row r of the same i was read. p_scale: every scale_stride-th, as narrow() returns it.
// A product with the factor needs no limits: it rounds to a word where all are finite, and else the scale is NaN.
template <int rows, class Scales, class Store>
void narrow_probabilities(const float* p, int64_t stride, Range columns, const Range* ranges, const Scales& v_scale,
                          float* p_scale, int64_t scale_stride, const Store& store) {
  const Range common = {ranges[rows - 1].begin, ranges[0].end};
  auto all_see = [&](int64_t i) PYBATCH_INLINE_LAMBDA { return common.begin <= i && i + kLanes <= common.end; };
  auto scaled = [&](int r, int64_t i, F32x16 scale, bool all) PYBATCH_INLINE_LAMBDA {
    const F32x16 x = load(p + r * stride + i) * scale;
    return all ? x : select_range(ranges[r], i, x, zeros());
  };
  F32x16 largest[rows], bad[rows], bad_scale = zeros();
  for (int r = 0; r < rows; ++r) largest[r] = bad[r] = zeros();
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
    const F32x16 scale = v_scale(i);
    const bool all = all_see(i);
    if (all) bad_scale = fma(scale, zeros(), bad_scale);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const F32x16 x = scaled(r, i, scale, all);
      largest[r] = max(largest[r], abs(x));
      if (!all) bad[r] = fma(x, zeros(), bad[r]);
    }
  }
  F32x16 factor[rows];
  for (int r = 0; r < rows; ++r) {
    const float most = reduce_max(largest[r]);
    factor[r] = broadcast(word_factor(most));
    p_scale[r * scale_stride] = most / kLargestWord + reduce_add(bad[r] + bad_scale);
  }
  for (int64_t i = columns.begin; i < columns.end; i += kLanes) {
    const F32x16 scale = v_scale(i);
    const bool all = all_see(i);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) store(r, i, to_int(scaled(r, i, scale, all) * factor[r]));
  }
}

// Calls f with 0 .. n - 1 as constants.
template <int n, class F>
PYBATCH_INLINE void for_each_count(F&& f) {
  if constexpr (n > 0) {
    for_each_count<n - 1>(f);
    f(Count<n - 1>{});
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
