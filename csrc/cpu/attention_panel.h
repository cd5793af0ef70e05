// The two products of attention_tile.h over int8 and int4 caches by AMX's tiles, for tiles of queries of more rows than
// a block has. The sums are the integers of attention_int8.h and attention_int4.h.
//
// Codes of keys and values are unpacked into panels, once for all rows of a tile. A panel is for sixteen columns,
// tokens of keys or elements of values: a quad of four codes, neighbours in depth or tokens, of each column, then the
// next quad. A word of queries or probabilities is two digits without a sign, word = 256 * (high - 128) + low, so that
// the sum of words times codes is 256 * sum(high * code) + sum(low * code) - 2^15 * sum(code).
//
// Digits lie in steps of kStep elements, the depth of a tile: the high ones of every row, the low ones, and a row of
// ones, which gives the sums of codes.
#pragma once

#include "cpu/amx.h"
#include "cpu/attention_int4.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kStep = 64;
constexpr int64_t kQuadBytes = kQuad * kLanes;
constexpr int64_t kStepQuads = kStep / kQuad;
constexpr int64_t kChunk = kColumns * kLanes;  // tokens whose keys are unpacked at a time
constexpr int64_t kValuePanelBytes = (kAttentionSplit / kQuad + 1) * kQuadBytes;  // not a power of two
constexpr int64_t kTileBytes = 16 * kStep;  // what a tile may read past the last digits or quads

PYBATCH_INLINE constexpr int64_t steps_of(int64_t n) { return (n + kStep - 1) / kStep; }
// A step of digits of `rows` rows.
PYBATCH_INLINE constexpr int64_t step_bytes(int64_t rows) { return (2 * rows + 1) * kStep; }

// Stores the digits of sixteen words, elements i to i + 15 of row r.
PYBATCH_INLINE void store_digits(uint8_t* digits, int64_t rows, int64_t r, int64_t i, __m128i high, __m128i low) {
  uint8_t* at = digits + i / kStep * step_bytes(rows) + i % kStep;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at + r * kStep), high);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at + (rows + r) * kStep), low);
  if (r == 0) _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 2 * rows * kStep), _mm_set1_epi8(1));
}
PYBATCH_INLINE __m128i high_digits(I32x16 words) {
  return _mm_xor_si128(_mm512_cvtepi32_epi8(_mm512_srai_epi32(words.v, 8)), _mm_set1_epi8(-128));
}
PYBATCH_INLINE __m128i low_digits(I32x16 words) { return _mm512_cvtepi32_epi8(words.v); }

// Prefetches what comes after, line by line.
template <class T>
struct Ahead {
  const T* const* next;
  int64_t offset, bytes;  // of a piece
  int64_t done = 0;

  PYBATCH_INLINE void line() {
    fetch<64>(*next + offset + done);
    if ((done += 64) >= bytes) done = 0, ++next;
  }
};

// Signed codes of the nibbles, 0 to 15, in each byte.
PYBATCH_INLINE __m512i nibble_codes(__m512i nibbles) {
  const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibbles);
}
PYBATCH_INLINE __m512i low_codes(__m512i bytes) { return nibble_codes(_mm512_and_si512(bytes, _mm512_set1_epi8(0xf))); }
PYBATCH_INLINE __m512i high_codes(__m512i bytes) {
  return nibble_codes(_mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(0xf)));
}

// The order in which an int4 key's codes come, eight at a time: the lower nibbles of its words, then the upper.
PYBATCH_INLINE __m128i as_int4_keys(__m128i digits) {
  return _mm_shuffle_epi8(digits, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
}

// Four elements of sixteen keys as a quad: those of two granules of eight tokens, or of one run of sixteen.
template <bool split>
PYBATCH_INLINE __m512i key_quad(const int8_t* lo, const int8_t* hi, int64_t stride) {
  auto at = [](const int8_t* p) PYBATCH_INLINE_LAMBDA { return reinterpret_cast<const __m128i*>(p); };
  __m512i quad;
  if constexpr (split) {
    const __m512i lo_four = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lo)));
    quad = _mm512_inserti64x4(lo_four, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(hi)), 1);
    quad = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15), quad);
  } else {
    if (stride == kLanes) {
      quad = _mm512_loadu_si512(lo);
    } else {
      quad = _mm512_castsi128_si512(_mm_loadu_si128(at(lo)));
      quad = _mm512_inserti32x4(quad, _mm_loadu_si128(at(lo + stride)), 1);
      quad = _mm512_inserti32x4(quad, _mm_loadu_si128(at(lo + 2 * stride)), 2);
      quad = _mm512_inserti32x4(quad, _mm_loadu_si128(at(lo + 3 * stride)), 3);
    }
    quad = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), quad);
  }
  // Each 128 bits: four tokens of each of four elements.
  const __m128i turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(quad, _mm512_broadcast_i32x4(turn));
}

template <bool split>
PYBATCH_INLINE void unpack_column(const int8_t* lo, const int8_t* hi, int64_t block_size, int64_t depth, int8_t* panel,
                                  Ahead<int8_t>& ahead) {
  const int64_t stride = kQuad * block_size;
  for (int64_t d = 0; d < depth; d += kQuad, lo += stride, hi += stride, panel += kQuadBytes) {
    ahead.line();
    _mm512_store_si512(panel, key_quad<split>(lo, hi, block_size));
  }
}
template <bool split>
PYBATCH_INLINE void unpack_column(const i4x2* lo, const i4x2* hi, int64_t block_size, int64_t depth, int8_t* panel,
                                  Ahead<i4x2>& ahead) {
  const int64_t stride = block_size * kKeyRun<i4x2>;
  for (int64_t d = 0; d < depth; d += 2 * kQuad, lo += stride, hi += stride, panel += 2 * kQuadBytes) {
    ahead.line();
    __m512i words = _mm512_loadu_si512(lo);
    if constexpr (split) {
      words = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lo))),
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i*>(hi)), 1);
    }
    _mm512_store_si512(panel, low_codes(words));
    _mm512_store_si512(panel + kQuadBytes, high_codes(words));
  }
}

// Keys of `columns` panels, stride apart; two granules a column.
template <class T>
__attribute__((noinline)) void unpack_keys(Granules<T> k, int64_t block_size, int64_t columns, int64_t depth,
                                           int8_t* panel, int64_t stride) {
  Ahead<T> ahead = {k.next, k.offset, kGranule * depth / kElements<T>};
  for (int64_t c = 0; c < columns; ++c, panel += stride) {
    const T *lo = k.at[2 * c] + k.offset, *hi = k.at[2 * c + 1] + k.offset;
    if (block_size == kGranule) {
      unpack_column<true>(lo, hi, block_size, depth, panel, ahead);
    } else {
      unpack_column<false>(lo, hi, block_size, depth, panel, ahead);
    }
  }
}

// How many elements of values are unpacked together, and how many panels they are.
template <class T>
constexpr int64_t kValueWidth = 64;
template <>
inline constexpr int64_t kValueWidth<i4x2> = kInt4Group;
template <class T>
constexpr int kValuePanels = static_cast<int>(kValueWidth<T> / kLanes);

// Values of tokens [begin, end), multiples of a granule, of the elements from `first` on: quads into as many panels,
// stride apart. Which element is in which lane of which panel is what place_sums() undoes.
inline __attribute__((noinline)) void unpack_values(Granules<int8_t> v, int64_t depth, int64_t first, int64_t begin,
                                                    int64_t end, int8_t* panel, int64_t stride) {
  const int64_t left = depth - first;
  const __mmask64 mask = left >= kStep ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
  for (int64_t token = begin; token < end; token += kGranule) {
    const int64_t granule = token / kGranule;
    const int8_t *value = v.at[granule] + v.offset + first, *next = v.next[granule] + v.offset + first;
#pragma GCC unroll 2
    for (int64_t quad = token / kQuad; quad < token / kQuad + kGranule / kQuad; ++quad) {
      __m512i x[kQuad];
#pragma GCC unroll 4
      for (int i = 0; i < kQuad; ++i, value += depth, next += depth) {
        x[i] = _mm512_maskz_loadu_epi8(mask, value);
        fetch<64>(next);
      }
      const __m512i lo01 = _mm512_unpacklo_epi8(x[0], x[1]), hi01 = _mm512_unpackhi_epi8(x[0], x[1]);
      const __m512i lo23 = _mm512_unpacklo_epi8(x[2], x[3]), hi23 = _mm512_unpackhi_epi8(x[2], x[3]);
      int8_t* to = panel + quad * kQuadBytes;
      _mm512_store_si512(to, _mm512_unpacklo_epi16(lo01, lo23));
      _mm512_store_si512(to + stride, _mm512_unpackhi_epi16(lo01, lo23));
      _mm512_store_si512(to + 2 * stride, _mm512_unpacklo_epi16(hi01, hi23));
      _mm512_store_si512(to + 3 * stride, _mm512_unpackhi_epi16(hi01, hi23));
    }
  }
}
inline __attribute__((noinline)) void unpack_values(Granules<i4x2> v, int64_t depth, int64_t first, int64_t begin,
                                                    int64_t end, int8_t* panel, int64_t stride) {
  const int64_t left = depth - first, quad_bytes = kQuad * depth / kElements<i4x2>;
  const __mmask64 mask = left >= kInt4Group ? ~__mmask64{0} : (__mmask64{1} << (2 * left)) - 1;
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  for (int64_t token = begin; token < end; token += kGranule) {
    const int64_t granule = token / kGranule, offset = v.offset + first * kQuad / kElements<i4x2>;
    const i4x2 *value = v.at[granule] + offset, *next = v.next[granule] + offset;
#pragma GCC unroll 2
    for (int64_t quad = token / kQuad; quad < token / kQuad + kGranule / kQuad; ++quad) {
      fetch<64>(next);
      const __m512i bytes = _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(mask, value), order);
      int8_t* to = panel + quad * kQuadBytes;
      _mm512_store_si512(to, low_codes(bytes));
      _mm512_store_si512(to + stride, high_codes(bytes));
      value += quad_bytes;
      next += quad_bytes;
    }
  }
}

// Writes a row of sums over the panels of unpack_values() to the first `count` of the elements they are of.
PYBATCH_INLINE void place_sums(const int32_t* sums, int32_t* to, int64_t count, Count<4>) {
  const __m512i a = load_ints(sums).v, b = load_ints(sums + 16).v, c = load_ints(sums + 32).v,
                d = load_ints(sums + 48).v;
  const __m512i lo_ab = _mm512_shuffle_i32x4(a, b, 0x44), hi_ab = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i lo_cd = _mm512_shuffle_i32x4(c, d, 0x44), hi_cd = _mm512_shuffle_i32x4(c, d, 0xee);
  store(to, {_mm512_shuffle_i32x4(lo_ab, lo_cd, 0x88)});
  if (count > 16) store(to + 16, {_mm512_shuffle_i32x4(lo_ab, lo_cd, 0xdd)});
  if (count > 32) store(to + 32, {_mm512_shuffle_i32x4(hi_ab, hi_cd, 0x88)});
  if (count > 48) store(to + 48, {_mm512_shuffle_i32x4(hi_ab, hi_cd, 0xdd)});
}
PYBATCH_INLINE void place_sums(const int32_t* sums, int32_t* to, int64_t count, Count<2>) {
  const __m512i even = load_ints(sums).v, odd = load_ints(sums + 16).v;
  if (count == kInt4Group) {
    const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    store(to, {_mm512_permutex2var_epi32(even, first, odd)});
    store(to + 16, {_mm512_permutex2var_epi32(even, _mm512_or_si512(first, _mm512_set1_epi32(1)), odd)});
    return;
  }
  const int64_t units = count / 4;
  for (int64_t i = 0; i < units; ++i) {
    for (int64_t n = 0; n < 4; ++n) to[n * units + i] = sums[n % 2 * kLanes + 2 * i + n / 2];
  }
}

// Clears the steps that `columns` do not fill.
inline void zero_ends(uint8_t* digits, int64_t rows, Range columns) {
  const int64_t ends[] = {columns.begin, columns.end};
  for (const int64_t end : ends) {
    if (end % kStep > 0) {
      std::memset(digits + end / kStep * step_bytes(rows), 0, static_cast<size_t>(step_bytes(rows)));
    }
  }
}

// out[r][c] = sum over the quads [begin, end) of words times codes; panels are `stride` apart. Tiles take whole steps:
// digits outside of the quads are zeros there.
template <int rows, int columns>
__attribute__((noinline)) void multiply(const uint8_t* digits, const int8_t* panel, int64_t stride, int64_t begin,
                                        int64_t end, int32_t* out, int64_t out_stride) {
  for_each_count<columns>([&]<int c>(Count<c>) PYBATCH_INLINE_LAMBDA { zero_tile<c>(); });
  for (int64_t step = begin / kStepQuads; step * kStepQuads < end; ++step) {
    load_tile<4>(digits + step * step_bytes(rows), kStep);
    for_each_count<columns>([&]<int c>(Count<c>) PYBATCH_INLINE_LAMBDA {
      load_tile<5 + c % 3>(panel + c * stride + step * kStepQuads * kQuadBytes, kQuadBytes);
      multiply_unsigned_signed<c, 4, 5 + c % 3>();
    });
  }
  alignas(64) int32_t sums[columns][16][kLanes];
  for_each_count<columns>([&]<int c>(Count<c>) PYBATCH_INLINE_LAMBDA {
    store_tile<c>(sums[c], kQuadBytes);
    const I32x16 all = load_ints(sums[c][2 * rows]) << 15;
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const I32x16 sum = (load_ints(sums[c][r]) << 8) + load_ints(sums[c][rows + r]);
      store(out + r * out_stride + c * kLanes, {_mm512_sub_epi32(sum.v, all.v)});
    }
  });
}

// Scores of `rows` rows against up to kColumns columns. digits: of the queries, in as many steps as the keys have
// groups of their own scales, or as the depth needs.
template <int rows, class Scales>
void score_columns(const uint8_t* digits, const int8_t* panel, int64_t stride, int64_t columns, int64_t depth,
                   const float* q_scale, const Scales& k_scale, float* out, int64_t out_stride, Count<1>) {
  (void)q_scale, (void)k_scale;  // which the softmax applies
  with_count<kColumns>(columns, [&]<int width>(Count<width>) {
    multiply<rows, width>(digits, panel, stride, 0, depth / kQuad, reinterpret_cast<int32_t*>(out), out_stride);
  });
}
template <int rows, class Scales>
void score_columns(const uint8_t* digits, const int8_t* panel, int64_t stride, int64_t columns, int64_t depth,
                   const float* q_scale, const Scales& k_scale, float* out, int64_t out_stride, Count<2>) {
  alignas(64) int32_t sums[rows][kChunk];
  for (int64_t first = 0; first < depth; first += kInt4Group, digits += step_bytes(rows)) {
    const int64_t quads = (depth - first < kInt4Group ? depth - first : kInt4Group) / kQuad;
    with_count<kColumns>(columns, [&]<int width>(Count<width>) {
      multiply<rows, width>(digits, panel + first / kQuad * kQuadBytes, stride, 0, quads, sums[0], kChunk);
    });
    for (int64_t c = 0; c < columns; ++c) {
      const F32x16 scale = k_scale(first / kInt4Group, c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) {
        float* at = out + r * out_stride + c * kLanes;
        add_score(at, load_ints(sums[r] + c * kLanes), scale, first == 0,
                  depth - first <= kInt4Group ? q_scale + r : nullptr);
      }
    }
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
