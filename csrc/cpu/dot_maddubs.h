// Exact products of int8 for AVX2. It has no dot product of bytes: vpmaddubsw multiplies unsigned bytes by signed ones
// and adds two products in 16 bits, where they need not fit.
//
// Weights are taken as w + 128, at most 255, and 128 * sum(x) is subtracted again. So sums of products fit 16 bits
// where the positive activations among them add up to at most 128, and the negative ones to at least -128: in a model
// that is mostly so, since only a row's largest is 127. Of eight k, two pairs of products are added in 16 bits before
// they are widened (5 instructions for 64 products), or none (6), or activations and weights are widened first (8). A
// tile's rows decide together, which changes no bit: sums are exact.
#pragma once

#include "cpu/gemm.h"
#include "cpu/vec_int.h"

#if defined(PYBATCH_ISA_AVX2)

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

struct DotMaddubs {
  static constexpr int kGroups = 128, kRows = 1, kInterleaved = 1;
  static constexpr int64_t kStepWeights = 4 * kGroups;
  struct Tile : VectorTile {
    static constexpr int kMaxRows = 8, kMaxPanels = 4, kMaxSums = 8, kStepWork = kGroups;
  };
  struct Sum {
    __m256i lo, hi;
  };

  // A step's activations of a row. Bit i of a mask stands for the eight k from 8 * i on.
  struct Activations {
    uint64_t used, pairs_fit, fours_fit;  // not only zeros (which they are past k); sums that fit 16 bits
    int32_t start;                        // -128 * their sum
    int8_t q[kStepWeights];
    int16_t wide[kStepWeights];  // of four k, in the order 0, 2, 1, 3
  };
  static constexpr int kStepBytes = sizeof(Activations);
  static int64_t row_bytes(int64_t k) { return ceil_div(k, kStepWeights) * kStepBytes; }

  // A bit for each half: whether the top bits of its bytes are those of `wanted`.
  static PYBATCH_INLINE uint64_t of_halves(__m128i lanes, int wanted) {
    const int bytes = _mm_movemask_epi8(lanes) ^ wanted;
    return static_cast<uint64_t>((bytes & 0xff) == 0) | static_cast<uint64_t>((bytes & 0xff00) == 0) << 1;
  }

  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 x) {
    auto* to = reinterpret_cast<Activations*>(row) + k / kStepWeights;
    const int64_t at = k % kStepWeights;
    if (at == 0) *to = {};
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m256i wide = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
    wide = _mm256_permute4x64_epi64(wide, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to->wide + at), _mm256_shuffle_epi8(wide, order));
    const __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to->q + at), q);

    const __m128i zero = _mm_setzero_si128(), ones = _mm_set1_epi8(1);
    const __m128i positive = _mm_maddubs_epi16(ones, _mm_max_epi8(q, zero));
    const __m128i negative = _mm_maddubs_epi16(ones, _mm_max_epi8(_mm_sub_epi8(zero, q), zero));
    auto fit = [](__m128i a, __m128i b) {
      return of_halves(_mm_cmpgt_epi16(_mm_max_epi16(a, b), _mm_set1_epi16(128)), 0);
    };
    auto add_next_four = [](__m128i a) { return _mm_add_epi16(a, _mm_shuffle_epi32(a, 0xb1)); };
    const int64_t bit = at / 8;
    to->used |= (of_halves(_mm_cmpeq_epi8(q, zero), 0xffff) ^ 3) << bit;
    to->pairs_fit |= fit(positive, negative) << bit;
    to->fours_fit |= fit(add_next_four(positive), add_next_four(negative)) << bit;
    __m128i sum = _mm_madd_epi16(_mm_sub_epi16(positive, negative), _mm_set1_epi16(-128));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    to->start += _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }

  template <int kTileRows, int kPanels>
  static void multiply_tile(const TileArguments& t) {
    Sum sum[kTileRows][kPanels];
    auto* parked = static_cast<Sum*>(t.sums);
    for (int r = 0; r < kTileRows; ++r) {
      for (int p = 0; p < kPanels; ++p) sum[r][p] = t.resume ? parked[p * kTileRows + r] : Sum{};
    }
    const int64_t ahead = t.fetch_first == 0 ? t.ahead : 0;  // the first tile reads the next block ahead for all
    const char *x = t.x, *weight = t.weight;
    for (int64_t step = 0; step < t.steps; ++step, x += kStepBytes, weight += kStepWeights * kPanel) {
      uint64_t used = 0, pairs_fit = ~used, fours_fit = ~used;
      const char* q[(kTileRows + 3) / 4];  // with one address for all rows, their offsets would spill
      for (int r = 0; r < kTileRows; ++r) {
        auto* row = reinterpret_cast<const Activations*>(x + r * t.x_stride);
        used |= row->used;
        pairs_fit &= row->pairs_fit;
        fours_fit &= row->fours_fit;
        const __m256i start = _mm256_set1_epi32(row->start);
        for (Sum& s : sum[r]) s = {_mm256_add_epi32(s.lo, start), _mm256_add_epi32(s.hi, start)};
        if (r % 4 == 0) {
          q[r / 4] = reinterpret_cast<const char*>(row->q);
          asm("" : "+r"(q[r / 4]));
        }
      }
      auto for_each_eight = [&](uint64_t eights, const auto& multiply_add) PYBATCH_INLINE_LAMBDA {
        for (; eights != 0; eights &= eights - 1) {
          const int64_t k = 8 * __builtin_ctzll(eights);
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) {
            const char* columns = weight + p * t.panel_stride + k * kPanel;
            __builtin_prefetch(columns + ahead, 0, 2);
            __builtin_prefetch(columns + ahead + 64, 0, 2);
            __m256i w[4];  // of four k and 16 columns, twice
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
              w[i] = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns) + i),
                                      _mm256_set1_epi8(-128));
            }
#pragma GCC unroll 8
            for (int r = 0; r < kTileRows; ++r) multiply_add(w, q[r / 4] + r % 4 * t.x_stride, k, sum[r][p]);
          }
        }
      };
      auto widened = [](__m256i words) PYBATCH_INLINE_LAMBDA { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); };
      auto four = [](const char* p) PYBATCH_INLINE_LAMBDA { return _mm256_set1_epi32(load_int(p)); };
      for_each_eight(used & fours_fit, [&](const __m256i* w, const char* row, int64_t k, Sum& s) PYBATCH_INLINE_LAMBDA {
        const __m256i x0 = four(row + k), x1 = four(row + k + 4);
        auto dot = [&](__m256i w0, __m256i w1) PYBATCH_INLINE_LAMBDA {
          return widened(_mm256_add_epi16(_mm256_maddubs_epi16(w0, x0), _mm256_maddubs_epi16(w1, x1)));
        };
        s = {_mm256_add_epi32(s.lo, dot(w[0], w[2])), _mm256_add_epi32(s.hi, dot(w[1], w[3]))};
      });
      for_each_eight(used & pairs_fit & ~fours_fit,
                     [&](const __m256i* w, const char* row, int64_t k, Sum& s) PYBATCH_INLINE_LAMBDA {
                       const __m256i x0 = four(row + k), x1 = four(row + k + 4);
                       s.lo = _mm256_add_epi32(s.lo, widened(_mm256_maddubs_epi16(w[0], x0)));
                       s.hi = _mm256_add_epi32(s.hi, widened(_mm256_maddubs_epi16(w[1], x0)));
                       s.lo = _mm256_add_epi32(s.lo, widened(_mm256_maddubs_epi16(w[2], x1)));
                       s.hi = _mm256_add_epi32(s.hi, widened(_mm256_maddubs_epi16(w[3], x1)));
                     });
      for_each_eight(
          used & ~pairs_fit, [&](const __m256i* w, const char* row, int64_t k, Sum& s) PYBATCH_INLINE_LAMBDA {
            const char* wide = row + kStepWeights + 2 * k;
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
              const __m256i even = four(wide + 8 * i), odd = four(wide + 8 * i + 4);
              auto dot = [&](__m256i bytes, __m256i& sum) PYBATCH_INLINE_LAMBDA {
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, _mm256_and_si256(bytes, _mm256_set1_epi16(255))));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(odd, _mm256_srli_epi16(bytes, 8)));
              };
              dot(w[2 * i], s.lo);
              dot(w[2 * i + 1], s.hi);
            }
          });
    }
    for (int r = 0; r < kTileRows; ++r) {
      for (int p = 0; p < kPanels; ++p) parked[p * kTileRows + r] = sum[r][p];
    }
  }

  static PYBATCH_INLINE F32x16 to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum.lo), _mm256_cvtepi32_ps(sum.hi)}; }
};

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#endif
