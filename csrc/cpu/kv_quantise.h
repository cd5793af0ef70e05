// Elements of a head as codes with a scale, and the packed words of an int4 key, as pybatch/kv_cache.h has them.
#pragma once

#include "cpu/vec.h"
#include "pybatch/head_dim.h"
#include "pybatch/kv_cache.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

PYBATCH_INLINE float value_of(f16 x) {
  f16 lanes[kLanes];
  for (f16& lane : lanes) lane = x;
  return reduce_max(load(lanes));
}

// Turns x[0, n), followed by zeros up to a whole vector, into codes in place and returns their scale: x ~ code * scale.
template <bool four_bits>
f16 quantise(float* x, int64_t n) {
  F32x16 above = zeros(), below = zeros(), bad = zeros();  // bad: NaN where any is not finite
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 v = load(x + i);
    above = max(above, v);
    below = max(below, zeros() - v);
    bad = fma(v, zeros(), bad);
  }
  const float high = reduce_max(above), low = reduce_max(below), largest = high > low ? high : low;
  const float exact = !four_bits ? largest / 127.0f : high > low ? high / -8.0f : low / 8.0f;
  f16 scale[kLanes];
  store(scale, broadcast(exact + reduce_add(bad)));
  const float rounded = value_of(scale[0]);
  const F32x16 divisor = broadcast(rounded != 0.0f ? rounded : 1.0f);
  const F32x16 least = broadcast(four_bits ? -8.0f : -127.0f), most = broadcast(four_bits ? 7.0f : 127.0f);
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, max(min(round(load(x + i) / divisor), most), least));
  return scale[0];
}

// The same group by group, with scales `stride` apart.
inline void quantise_int4(float* x, int64_t depth, f16* scales, int64_t stride) {
  for (int64_t g = 0; g < depth; g += kInt4Group, scales += stride) {
    *scales = quantise<true>(x + g, depth - g < kInt4Group ? depth - g : kInt4Group);
  }
}

// A code as the lowest four bits of a word.
PYBATCH_INLINE uint32_t bits_of(float code) { return static_cast<uint32_t>(static_cast<int32_t>(code)) & 0xf; }

// Where element i of a key is in its word of eight.
PYBATCH_INLINE int key_shift(int64_t i) { return static_cast<int>(4 * (i % 8 / 2 + i % 2 * 4)); }

// The words of a key, `stride` apart.
inline void write_int4_key(const float* codes, int64_t depth, uint32_t* words, int64_t stride) {
  for (int64_t first = 0; first < depth; first += 8, words += stride) {
    *words = 0;
    for (int64_t i = 0; i < 8; ++i) *words |= bits_of(codes[first + i]) << key_shift(i);
  }
}
inline void read_int4_key(const uint32_t* words, const f16* scales, int64_t depth, int64_t stride, float* x) {
  float scale = 0.0f;
  for (int64_t i = 0; i < depth; ++i) {
    if (i % kInt4Group == 0) scale = value_of(scales[i / kInt4Group * stride]);
    const uint32_t word = words[i / 8 * stride];
    x[i] = static_cast<float>(static_cast<int32_t>(word << (28 - key_shift(i))) >> 28) * scale;
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
