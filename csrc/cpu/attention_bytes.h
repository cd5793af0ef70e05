// The products over an int8 cache by dot products of bytes (vpdpbusd): a word is 256 * high + low, where low is an
// unsigned byte, and the sums of both, which are exact, are put together. Codes are the signed bytes that low ones are
// multiplied by, and high ones of probabilities, which are not negative; those of queries are multiplied by codes with
// 128 added. Four codes of a sum have to be side by side for that, which takes two shuffles, where words of two take
// eight instructions.
#pragma once

#include "cpu/attention_int8.h"

#if defined(PYBATCH_ANY_AVX512)

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Sixteen words as bytes: of each four the low ones, then the high ones.
PYBATCH_INLINE __m256i split_words(I32x16 words) {
  const __m256i order =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  return _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(words.v), order);
}

// Replaces x[0..n) by bytes: of each four the low ones, then the high ones; behind them -128 times the sum of the high
// ones. Returns the scale as narrow() does.
inline float narrow_to_bytes(float* x, int64_t n) {
  auto* bytes = reinterpret_cast<char*>(x);
  __m512i high = _mm512_setzero_si512();
  const float scale = narrow(x, n, [&](int64_t i, I32x16 words) PYBATCH_INLINE_LAMBDA {
    high = _mm512_add_epi32(high, _mm512_srai_epi32(words.v, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 2 * i), split_words(words));
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

// Makes four rows of sixteen bytes sixteen of four. split: as load_four() has them. The four words of a lane of 128
// bits become those of four columns, of one row each; then their bytes four columns.
template <bool split>
PYBATCH_INLINE __m512i turn_four(__m512i four) {
  const __m512i words = split ? _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                              : _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(words, four), bytes);
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
          codes[c] = turn_four<split>(four);
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

// Puts sums into the order of elements: x[n] has the n-th four of each sixteen.
PYBATCH_INLINE void order_quads(__m512i (&x)[4]) {
  const __m512i even[] = {_mm512_shuffle_i32x4(x[0], x[1], 0x88), _mm512_shuffle_i32x4(x[2], x[3], 0x88)};
  const __m512i odd[] = {_mm512_shuffle_i32x4(x[0], x[1], 0xdd), _mm512_shuffle_i32x4(x[2], x[3], 0xdd)};
  x[0] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
  x[1] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
  x[2] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
  x[3] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
}

// Values of four tokens side by side, of `columns` times 16 elements, or (half) of 8: of 64 elements the first eight of
// each sixteen, or (part 1) the others.
template <int columns, bool half, int part>
PYBATCH_INLINE void value_quads(const int8_t* value, int64_t depth, __m512i (&quads)[columns > 1 ? 2 : 1]) {
  if constexpr (columns > 1) {
    auto token = [&](int t) PYBATCH_INLINE_LAMBDA { return _mm512_loadu_si512(value + t * depth); };
    auto pair = [](__m512i a, __m512i b) PYBATCH_INLINE_LAMBDA {
      return part == 0 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b);
    };
    const __m512i first = pair(token(0), token(1)), second = pair(token(2), token(3));
    quads[0] = _mm512_unpacklo_epi16(first, second);
    quads[1] = _mm512_unpackhi_epi16(first, second);
  } else {
    const int8_t* third = value + 2 * depth;
    if constexpr (half) {
      const __m256i four = _mm256_set_m128i(load_bytes(third, third + depth), load_bytes(value, value + depth));
      quads[0] = turn_four<true>(_mm512_zextsi256_si512(four));
    } else {
      quads[0] = turn_four<false>(load_four<false>(value, third, depth));
    }
  }
}

// As weigh() of attention_tile.h; rows of p are bytes of split_words(), which are unsigned since no word is below 0.
template <int rows, int columns, bool half>
__attribute__((noinline)) void weigh(const float* p, int64_t p_stride, Granules<int8_t> v, int64_t depth,
                                     int64_t column, int64_t begin, int64_t end, float* out, int64_t out_stride,
                                     const Rescale* rescale) {
  static_assert(columns == 1 || columns == 4);
  constexpr int kQuads = columns > 1 ? 2 : 1;  // for which there are registers
  __m512i sums[rows][columns];
  for_each_count<columns / kQuads>([&]<int part>(Count<part>) PYBATCH_INLINE_LAMBDA {
    __m512i low[rows][kQuads], high[rows][kQuads];
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < kQuads; ++c) low[r][c] = high[r][c] = _mm512_setzero_si512();
    }
    const auto* words = reinterpret_cast<const char*>(p) + 2 * begin;
    for (int64_t granule = begin / kGranule; granule < end / kGranule; ++granule) {
      const int8_t *value = v.at[granule] + v.offset + column, *next = v.next[granule] + v.offset + column;
#pragma GCC unroll 2
      for (int half_granule = 0; half_granule < 2; ++half_granule, words += 8, value += 4 * depth) {
        __m512i quads[kQuads];
        value_quads<columns, half, part>(value, depth, quads);
        if (half_granule > 0) {  // the others were fetched before, by the softmax
#pragma GCC unroll 4
          for (int t = part; t < 4; t += columns / kQuads) fetch<columns * kLanes>(next + (4 + t) * depth);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
          const char* row = words + r * p_stride * static_cast<int64_t>(sizeof(float));
          const __m512i x_low = _mm512_set1_epi32(load_int(row)), x_high = _mm512_set1_epi32(load_int(row + 4));
#pragma GCC unroll 8
          for (int c = 0; c < kQuads; ++c) {
            low[r][c] = _mm512_dpbusd_epi32(low[r][c], x_low, quads[c]);
            high[r][c] = _mm512_dpbusd_epi32(high[r][c], x_high, quads[c]);
          }
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < kQuads; ++c) {
        sums[r][part * kQuads + c] = _mm512_add_epi32(_mm512_slli_epi32(high[r][c], 8), low[r][c]);
      }
    }
  });
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    if constexpr (columns > 1) order_quads(sums[r]);
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) {
      add_scaled(out + r * out_stride + column + c * kLanes, I32x16{sums[r][c]},
                 rescale->scale[r * rescale->scale_stride], rescale->keep[r]);
    }
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Replaces a row of queries by what scores() over a cache of T reads, and returns its scale.
template <class T>
float narrow_queries(float* q, int64_t n) {
#if defined(PYBATCH_ANY_AVX512)
  if constexpr (kElements<T> == 1) return narrow_to_bytes(q, n);
#endif
  auto* words = reinterpret_cast<int16_t*>(q);
  return narrow(q, n, [&](int64_t i, I32x16 x) PYBATCH_INLINE_LAMBDA { store_words(words + i, x); });
}

// Stores words of probabilities as weigh() over a cache of T reads them.
template <class T>
PYBATCH_INLINE void store_probabilities(int16_t* p, I32x16 words) {
#if defined(PYBATCH_ANY_AVX512)
  if constexpr (kElements<T> == 1) {
    return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), split_words(words));
  }
#endif
  store_words(p, words);
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
