// Scores over an int8 cache by dot products of bytes (vpdpbusd): a word of a query is 256 * high + low, where low is an
// unsigned byte, and the sums of both, which are exact, are put together. Codes are the signed bytes that low ones are
// multiplied by and, with 128 added, the unsigned ones that high ones are. Four of a token have to be side by side for
// that, which takes two shuffles, where words of two take eight instructions.
#pragma once

#include "cpu/attention_int8.h"

#if defined(PYBATCH_ANY_AVX512)

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Replaces x[0..n) by bytes: of each four the low ones, then the high ones; behind them -128 times the sum of the high
// ones. Returns the scale as narrow() does.
inline float narrow_to_bytes(float* x, int64_t n) {
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  auto* bytes = reinterpret_cast<char*>(x);
  __m512i high = _mm512_setzero_si512();
  const float scale = narrow(x, n, [&](int64_t i, I32x16 words) PYBATCH_INLINE_LAMBDA {
    high = _mm512_add_epi32(high, _mm512_srai_epi32(words.v, 8));
    const __m256i split = _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(words.v), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 2 * i), split);
  });
  const int32_t start = -128 * reduce_add(I32x16{high});
  std::memcpy(bytes + 2 * n, &start, sizeof(start));
  return scale;
}

// Rows d .. d + 3 of sixteen tokens, `stride` apart, in the order of memory; in blocks of eight tokens from two of
// them.
template <bool split>
PYBATCH_INLINE __m512i load_four(const int8_t* lo, const int8_t* hi, int64_t stride) {
  if constexpr (split) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lo))),
                              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(hi)), 1);
  } else if (stride == kLanes) {
    return _mm512_loadu_si512(lo);
  } else {
    const __m256i first = _mm256_set_m128i(load_bytes(lo + stride), load_bytes(lo));
    const __m256i second = _mm256_set_m128i(load_bytes(lo + 3 * stride), load_bytes(lo + 2 * stride));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  }
}

// As scores() of attention_tile.h; rows of q are from narrow_to_bytes().
template <int rows, int columns, bool split>
__attribute__((noinline)) void scores(const float* q, int64_t q_stride, Granules<int8_t> k, int64_t k_stride,
                                      int64_t depth, float* out, int64_t out_stride) {
  constexpr int kAtOnce = 2;  // for which there are registers
  if constexpr (columns > kAtOnce) {
    scores<rows, kAtOnce, split>(q, q_stride, k, k_stride, depth, out, out_stride);
    k.at += 2 * kAtOnce;
    k.next += 2 * kAtOnce;
    scores<rows, columns - kAtOnce, split>(q, q_stride, k, k_stride, depth, out + kAtOnce * kLanes, out_stride);
  } else {
    // The four words of a lane of 128 bits become those of four tokens, of one row each; then their bytes four tokens.
    const __m512i words = split ? _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                : _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i low[rows][columns], high[rows][columns];
    for (int r = 0; r < rows; ++r) {
      const auto* row = reinterpret_cast<const char*>(q + r * q_stride);
      for (int c = 0; c < columns; ++c) {
        low[r][c] = _mm512_setzero_si512();
        high[r][c] = _mm512_set1_epi32(load_int(row + 2 * q_stride));
      }
    }
    for (int64_t half = 0, d = 0; half < 2; ++half) {  // of depth, each while one piece of a column is fetched
      const int8_t* next[columns];
      for (int c = 0; c < columns; ++c) next[c] = k.next[2 * c + half] + k.offset;
      for (const int64_t end = (half + 1) * depth / 2; d < end; d += 4) {
        __m512i codes[columns];
#pragma GCC unroll 8
        for (int c = 0; c < columns; ++c) {
          fetch<64>(next[c]);
          next[c] += 64;
          const int64_t element = k.offset + d * k_stride;
          const __m512i four = load_four<split>(k.at[2 * c] + element, k.at[2 * c + 1] + element, k_stride);
          codes[c] = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, four), bytes);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          const auto* row = reinterpret_cast<const char*>(q + r * q_stride) + 2 * d;
          const __m512i x_low = _mm512_set1_epi32(load_int(row)), x_high = _mm512_set1_epi32(load_int(row + 4));
#pragma GCC unroll 8
          for (int c = 0; c < columns; ++c) {
            low[r][c] = _mm512_dpbusd_epi32(low[r][c], x_low, codes[c]);
            high[r][c] = _mm512_dpbusd_epi32(high[r][c], _mm512_xor_si512(codes[c], _mm512_set1_epi8(-128)), x_high);
          }
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < columns; ++c) {
        const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][c], 8), low[r][c]);
        store(reinterpret_cast<int32_t*>(out + r * out_stride + c * kLanes), I32x16{sum});
      }
    }
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#endif
