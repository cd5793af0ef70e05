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
static_assert(kPart<int8_t> * 32767 * 127 <= INT32_MAX, "a part of the largest words and codes fits its sum");

constexpr int kQuad = 4;  // tokens whose values are side by side in an int4 cache

// Two codes.
struct i4x2 {
  uint8_t codes;
};
template <>
inline constexpr int64_t kElements<i4x2> = 2;
template <>
inline constexpr int64_t kKeyRun<i4x2> = 4;

// What makes words of x, where |x| is at most `largest`.
PYBATCH_INLINE float word_factor(float largest) {
  const float factor = kLargestWord / largest;
  return !(largest > 0) ? 0.0f : factor < kLargestFloat ? factor : kLargestFloat;
}

// Rounds x[0..n) to words: x ~ word * scale. Calls store(i, words) for each vector in turn, and
// returns the scale: NaN if any x is not finite.
template <class Store>
float narrow(const float* x, int64_t n, const Store& store) {
  F32x16 largest = zeros(), bad = zeros();
  for (int64_t i = 0; i < n; i += kLanes) {
    largest = max(largest, abs(load(x + i)));
    bad = fma(load(x + i), zeros(), bad);
  }
  const float most = reduce_max(largest);
  const F32x16 factor = broadcast(word_factor(most)), limit = broadcast(kLargestWord);
  for (int64_t i = 0; i < n; i += kLanes) {
    store(i, to_int(min(max(load(x + i) * factor, zeros() - limit), limit)));  // NaN becomes some word
  }
  return most / kLargestWord + reduce_add(bad);
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
