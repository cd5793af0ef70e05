// The two products of attention_tile.h over an int4 cache, in integers as attention_int8.h does them, straight from the
// packed codes (their layout is in pybatch/kv_cache.h). A scale belongs to a token and a group of kInt4Group elements:
// scores of a group are scaled and added to those of the groups before it, and each group of values has words of
// probabilities of its own, with the scales of its values in them.
#pragma once

#include "cpu/attention_int8.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int kCodes = 4;  // that a 16-bit word holds

#if defined(PYBATCH_ANY_AVX512)

// The n-th codes of 32 words of 16 bits.
template <int n>
PYBATCH_INLINE I32x16 codes_of(I32x16 words) {
  return {_mm512_srai_epi16(_mm512_slli_epi16(words.v, 12 - 4 * n), 12)};
}
PYBATCH_INLINE I32x16 load_int_halves(const void* lo, const void* hi) {
  const __m256i a = _mm256_loadu_si256(static_cast<const __m256i*>(lo));
  return {_mm512_inserti64x4(_mm512_castsi256_si512(a), _mm256_loadu_si256(static_cast<const __m256i*>(hi)), 1)};
}
// Lanes 0, 2, ... are p[0] and p[1], the others p[2] and p[3].
PYBATCH_INLINE I32x16 broadcast_quad(const int16_t* p) {
  long long quad;
  std::memcpy(&quad, p, sizeof(quad));
  return {_mm512_set1_epi64(quad)};
}
// Lane i: the sum of lanes 2i and 2i + 1.
PYBATCH_INLINE __m256i pair_sums(I32x16 a) {
  return _mm512_cvtepi64_epi32(_mm512_add_epi32(a.v, _mm512_srli_epi64(a.v, 32)));
}

#elif defined(PYBATCH_ANY_AVX2)

template <int n>
PYBATCH_INLINE I32x16 codes_of(I32x16 words) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(words.lo, 12 - 4 * n), 12),
          _mm256_srai_epi16(_mm256_slli_epi16(words.hi, 12 - 4 * n), 12)};
}
PYBATCH_INLINE I32x16 load_int_halves(const void* lo, const void* hi) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(lo)), _mm256_loadu_si256(static_cast<const __m256i*>(hi))};
}
PYBATCH_INLINE I32x16 broadcast_quad(const int16_t* p) {
  long long quad;
  std::memcpy(&quad, p, sizeof(quad));
  return {_mm256_set1_epi64x(quad), _mm256_set1_epi64x(quad)};
}
PYBATCH_INLINE __m256i pair_sums(I32x16 a) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a.lo, a.hi), 0xd8); }

#elif defined(PYBATCH_ANY_NEON)

template <int n>
PYBATCH_INLINE I32x16 codes_of(I32x16 words) {
  auto of = [&](int i) PYBATCH_INLINE_LAMBDA {
    const int16x8_t top = vshlq_n_s16(vreinterpretq_s16_u32(words.part[i]), 12 - 4 * n);
    return vreinterpretq_u32_s16(vshrq_n_s16(top, 12));
  };
  return {{of(0), of(1), of(2), of(3)}};
}
PYBATCH_INLINE I32x16 load_int_halves(const void* lo, const void* hi) {
  auto at = [](const void* p, int i) PYBATCH_INLINE_LAMBDA {
    return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i));
  };
  return {{at(lo, 0), at(lo, 1), at(hi, 0), at(hi, 1)}};
}
PYBATCH_INLINE I32x16 broadcast_quad(const int16_t* p) {
  const uint32x4_t quad = vreinterpretq_u32_s16(vcombine_s16(vld1_s16(p), vld1_s16(p)));
  return {{quad, quad, quad, quad}};
}

#else

template <int n>
PYBATCH_INLINE I32x16 codes_of(I32x16 words) {
  auto code = [](uint32_t x) { return static_cast<uint32_t>(static_cast<int32_t>(x << (28 - 4 * n)) >> 28); };
  I32x16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = (code(words.v[i]) & 0xffff) | code(words.v[i] >> 16) << 16;
  return r;
}
PYBATCH_INLINE I32x16 load_int_halves(const void* lo, const void* hi) {
  I32x16 r;
  std::memcpy(r.v, lo, sizeof(r.v) / 2);
  std::memcpy(r.v + kLanes / 2, hi, sizeof(r.v) / 2);
  return r;
}
PYBATCH_INLINE I32x16 broadcast_quad(const int16_t* p) {
  I32x16 r;
  for (int i = 0; i < kLanes; i += 2) std::memcpy(r.v + i, p, 8);
  return r;
}

#endif

// Adds the scores of a group; behind the last, of a row with q_scale.
PYBATCH_INLINE void add_score(float* to, I32x16 sum, F32x16 k_scale, bool first, const float* q_scale) {
  const F32x16 score = first ? to_float(sum) * k_scale : fma(to_float(sum), k_scale, load(to));
  store(to, q_scale ? score * broadcast(*q_scale) : score);
}

// out[r][c] = q_scale[r] * sum over groups g of k_scale(g, c) * (sum over d in g of q[r][d] * k[c][d]); as scores() of
// attention_tile.h.
template <int rows, int columns, bool split, class Scales>
__attribute__((noinline)) void scores(const float* q, int64_t q_stride, Granules<i4x2> k, int64_t block_size,
                                      int64_t depth, const float* q_scale, const Scales& k_scale, float* out,
                                      int64_t out_stride) {
  using P = Product<int8_t>;
  const int64_t word_stride = block_size * kKeyRun<i4x2>, piece = kGranule * depth / kElements<i4x2>;
  const i4x2* const* next = k.next;
  int64_t fetched = 0, word = k.offset;
  for (int64_t group = 0; group < depth; group += kInt4Group) {
    const int64_t end = group + kInt4Group < depth ? group + kInt4Group : depth;
    Sums<P, rows, columns> sums{};
    for (int64_t d = group; d < end; d += 2 * kCodes, word += word_stride) {
      I32x16 words[columns];
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) {
        fetch<64>(*next + k.offset + fetched);
        if ((fetched += 64) >= piece) fetched = 0, ++next;
        const i4x2 *lo = k.at[2 * c] + word, *hi = k.at[2 * c + 1] + word;
        words[c] = split ? load_int_halves(lo, hi) : load_ints(lo);
      }
      for_each_count<kCodes>([&]<int n>(Count<n>) PYBATCH_INLINE_LAMBDA {
        I32x16 codes[columns];
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) codes[c] = codes_of<n>(words[c]);
        sums.add(q, q_stride, d + 2 * n, codes);
      });
    }
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      const F32x16 scale = k_scale(group / kInt4Group, c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        add_score(out + r * out_stride + c * kLanes, sums.sum[r][c], scale, group == 0,
                  end == depth ? q_scale + r : nullptr);
      }
    }
  }
}

// to[i] = the sum of lanes 2i and 2i + 1, for i < n, at most 8.
PYBATCH_INLINE void store_pair_sums(int32_t* to, I32x16 a, int64_t n) {
#if defined(PYBATCH_ANY_AVX512) || defined(PYBATCH_ANY_AVX2)
  if (n == kLanes / 2) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), pair_sums(a));
#elif defined(PYBATCH_ANY_NEON)
  if (n == kLanes / 2) {
    vst1q_s32(to, as_signed(vpaddq_u32(a.part[0], a.part[1])));
    return vst1q_s32(to + 4, as_signed(vpaddq_u32(a.part[2], a.part[3])));
  }
#endif
  int32_t lanes[kLanes];
  store(lanes, a);
  for (int64_t i = 0; i < n; ++i) to[i] = lanes[2 * i] + lanes[2 * i + 1];
}

// out[r][c] = sum over tokens begin .. end, multiples of a granule, of p[r][token] * v[token][group + c], for the
// elements c of one group: those that are the codes first .. first + count of their words. whole: the group has
// kInt4Group elements, as have rows of out.
template <int rows, int first, int count, bool whole>
__attribute__((noinline)) void weigh(const int16_t* p, int64_t p_stride, Granules<i4x2> v, int64_t depth, int64_t group,
                                     int64_t begin, int64_t end, int32_t* out) {
  constexpr int64_t kGroupWords = kInt4Group / kCodes;
  const int64_t units = whole ? kGroupWords : (depth - group) / kCodes, quad_bytes = kQuad * depth / kElements<i4x2>;
  I32x16 sums[rows][count];
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < count; ++c) sums[r][c] = broadcast_int(0);
  }
  p += begin;
  const int64_t offset = v.offset + group * kQuad / kElements<i4x2>;
  for (int64_t g = begin / kGranule; g < end / kGranule; ++g, p += kGranule) {
    const i4x2 *value = v.at[g] + offset, *next = v.next[g] + offset;
#pragma GCC unroll 2
    for (int64_t quad = 0; quad < kGranule / kQuad; ++quad, value += quad_bytes, next += quad_bytes) {
      I32x16 words;
      if constexpr (whole) {
        words = load_ints(value);
      } else {
        words = broadcast_int(0);
        std::memcpy(&words, value, static_cast<size_t>(units * kQuad) * sizeof(int16_t));
      }
      if (first == 0 && quad > 0) fetch<64>(next);  // quad 0 was fetched by the softmax
      I32x16 codes[count];
      for_each_count<count>([&]<int c>(Count<c>) PYBATCH_INLINE_LAMBDA { codes[c] = codes_of<first + c>(words); });
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        const I32x16 weights = broadcast_quad(p + r * p_stride + quad * kQuad);
#pragma GCC unroll 8
        for (int c = 0; c < count; ++c) sums[r][c] = dot_pairs(codes[c], weights, sums[r][c]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < count; ++c) {
      store_pair_sums(out + r * kInt4Group + (first + c) * units, sums[r][c], units);
    }
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
