// The two products of attention_tile.h over an int8 cache, straight from it: two neighbours are multiplied and added at
// a time.
#pragma once

#include "cpu/attention_words.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int kPair = 2;

#if defined(PYBATCH_ANY_AVX512) || defined(PYBATCH_ANY_AVX2)
using Bytes = __m128i;

PYBATCH_INLINE Bytes load_bytes(const int8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
PYBATCH_INLINE Bytes load_bytes(const int8_t* lo, const int8_t* hi) {
  return _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(lo)),
                            _mm_loadl_epi64(reinterpret_cast<const __m128i*>(hi)));
}
#endif

#if defined(PYBATCH_ANY_AVX512)

// Lane i: a[i] in the lower 16 bits, b[i] in the upper.
PYBATCH_INLINE I32x16 pairs_of(Bytes a, Bytes b) {
  return {_mm512_cvtepi8_epi16(_mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b)))};
}
PYBATCH_INLINE I32x16 dot_pairs(I32x16 a, I32x16 b, I32x16 sum) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
PYBATCH_INLINE void store_words(int16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}

#elif defined(PYBATCH_ANY_AVX2)

PYBATCH_INLINE I32x16 pairs_of(Bytes a, Bytes b) {
  return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b))};
}
PYBATCH_INLINE I32x16 dot_pairs(I32x16 a, I32x16 b, I32x16 sum) {
#if defined(PYBATCH_ISA_AVX2_VNNI)
  return {_mm256_dpwssd_avx_epi32(sum.lo, a.lo, b.lo), _mm256_dpwssd_avx_epi32(sum.hi, a.hi, b.hi)};
#else
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(a.lo, b.lo)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(a.hi, b.hi))};
#endif
}
PYBATCH_INLINE void store_words(int16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8));
}

#elif defined(PYBATCH_ANY_NEON)
using Bytes = int8x16_t;

PYBATCH_INLINE Bytes load_bytes(const int8_t* p) { return vld1q_s8(p); }
PYBATCH_INLINE Bytes load_bytes(const int8_t* lo, const int8_t* hi) { return vcombine_s8(vld1_s8(lo), vld1_s8(hi)); }

// No instruction adds products of neighbours; with those of a lane in two vectors, none has to be added by itself.
struct Pairs {
  Bytes a, b;
};
PYBATCH_INLINE Pairs pairs_of(Bytes a, Bytes b) { return {a, b}; }
PYBATCH_INLINE I32x16 dot_pairs(Pairs y, I32x16 x, I32x16 sum) {
  const int16x8_t words = vreinterpretq_s16_u32(x.part[0]);
  const int16x8_t a[2] = {vmovl_s8(vget_low_s8(y.a)), vmovl_high_s8(y.a)};
  const int16x8_t b[2] = {vmovl_s8(vget_low_s8(y.b)), vmovl_high_s8(y.b)};
  auto of = [&](int i) PYBATCH_INLINE_LAMBDA {
    int32x4_t dot = as_signed(sum.part[i]);
    if (i % 2 == 0) {
      dot = vmlal_laneq_s16(dot, vget_low_s16(a[i / 2]), words, 0);
      dot = vmlal_laneq_s16(dot, vget_low_s16(b[i / 2]), words, 1);
    } else {
      dot = vmlal_high_laneq_s16(dot, a[i / 2], words, 0);
      dot = vmlal_high_laneq_s16(dot, b[i / 2], words, 1);
    }
    return as_unsigned(dot);
  };
  return {{of(0), of(1), of(2), of(3)}};
}
PYBATCH_INLINE I32x16 dot_pairs(I32x16 a, I32x16 b, I32x16 sum) {
  auto of = [&](int i) PYBATCH_INLINE_LAMBDA {
    const int16x8_t x = vreinterpretq_s16_u32(a.part[i]), y = vreinterpretq_s16_u32(b.part[i]);
    const int32x4_t pairs = vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
    return vaddq_u32(sum.part[i], as_unsigned(pairs));
  };
  return {{of(0), of(1), of(2), of(3)}};
}
PYBATCH_INLINE void store_words(int16_t* p, I32x16 a) {
  vst1q_u16(reinterpret_cast<uint16_t*>(p), lower_halves(a.part[0], a.part[1]));
  vst1q_u16(reinterpret_cast<uint16_t*>(p + 8), lower_halves(a.part[2], a.part[3]));
}

#else

struct Bytes {
  int8_t v[kLanes];
};
PYBATCH_INLINE Bytes load_bytes(const int8_t* p) {
  Bytes r;
  std::memcpy(r.v, p, kLanes);
  return r;
}
PYBATCH_INLINE Bytes load_bytes(const int8_t* lo, const int8_t* hi) {
  Bytes r;
  std::memcpy(r.v, lo, 8);
  std::memcpy(r.v + 8, hi, 8);
  return r;
}
PYBATCH_INLINE I32x16 pairs_of(Bytes a, Bytes b) {
  I32x16 r;
  for (int i = 0; i < kLanes; ++i) {
    r.v[i] = static_cast<uint16_t>(a.v[i]) | static_cast<uint32_t>(static_cast<uint16_t>(b.v[i])) << 16;
  }
  return r;
}
PYBATCH_INLINE I32x16 dot_pairs(I32x16 a, I32x16 b, I32x16 sum) {
  auto half = [](uint32_t x, int shift) { return static_cast<int32_t>(static_cast<int16_t>(x >> shift)); };
  for (int i = 0; i < kLanes; ++i) {
    const int32_t dot = half(a.v[i], 0) * half(b.v[i], 0) + half(a.v[i], 16) * half(b.v[i], 16);
    sum.v[i] += static_cast<uint32_t>(dot);
  }
  return sum;
}
PYBATCH_INLINE void store_words(int16_t* p, I32x16 a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}

#endif

template <>
struct Product<int8_t> {
  using Sum = I32x16;
  static constexpr int kStep = kPair;
  static PYBATCH_INLINE void store_sum(float* p, Sum sum) { store(reinterpret_cast<int32_t*>(p), sum); }
  static PYBATCH_INLINE I32x16 multiplier(const float* row, int64_t i) {
    return broadcast_int(load_int(reinterpret_cast<const int16_t*>(row) + i));
  }
  static PYBATCH_INLINE auto columns(const int8_t* p, int64_t stride) {
    return pairs_of(load_bytes(p), load_bytes(p + stride));
  }
  static PYBATCH_INLINE auto columns(const int8_t* lo, const int8_t* hi, int64_t stride) {
    return pairs_of(load_bytes(lo, hi), load_bytes(lo + stride, hi + stride));
  }
  template <class Columns>
  static PYBATCH_INLINE Sum multiply_add(I32x16 x, Columns y, Sum sum) {
    return dot_pairs(y, x, sum);
  }
};

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
