// Exact products of int8 for AVX2. It has no dot product of bytes: vpmaddubsw multiplies unsigned bytes by signed ones
// and adds two products in 16 bits, where they need not fit.
//
// Weights are taken as w + 128, at most 255, and 128 * sum(x) is subtracted again. So sums of products fit 16 bits
// where the positive activations among them add up to at most 128, and the negative ones to at least -128: in a model
// that is mostly so, since only a row's largest is 127. Two pairs of products are added in 16 bits before they are
// widened: 5 instructions for 64 products. What does not fit is left out, in fours, and listed when a row is quantised;
// a list's products are added by themselves, with signs taken out of the weights, which fits always. A tile with a row
// that would list too many takes that form throughout: 8 instructions. No choice changes a bit: sums are exact.
#pragma once

#include <algorithm>

#include "cpu/gemm_microkernel.h"
#include "cpu/vec_int.h"

#if defined(PYBATCH_ISA_AVX2)

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

struct DotMaddubs {
  static constexpr int kGroups = 128, kRows = 1, kInterleaved = 1;
  static constexpr int kStepWeights = 4 * kGroups, kMaxListed = 40;
  struct Tile : VectorTile {
    static constexpr int kMaxRows = 8, kMaxPanels = 4, kMaxSums = 8, kStepWork = kGroups;
    static constexpr int64_t kBlockRows = 64;  // whose activations stay in the L2 cache
  };
  struct Sum {
    __m256i lo, hi;
  };

  struct Four {
    int32_t k, q;  // the first of four k, and their activations
  };
  // A step's activations of a row.
  struct Activations {
    int32_t eights;  // k in eights, up to the last that is not zero: past the end all are
    int32_t start;   // -128 * the sum of fitting
    int32_t listed;  // fours; if more than kMaxListed, `fitting` and `list` are of no use
    int8_t q[kStepWeights];
    int8_t fitting[kStepWeights];  // q, with zeros for what is listed
    Four list[kMaxListed];
  };
  static constexpr int kStepBytes = sizeof(Activations);
  static int64_t row_bytes(int64_t k) { return ceil_div(k, kStepWeights) * kStepBytes; }

  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 x) {
    auto* to = reinterpret_cast<Activations*>(row) + k / kStepWeights;
    const int at = static_cast<int>(k % kStepWeights);
    if (at == 0) {
      to->eights = to->start = to->listed = 0;
      std::memset(to->q, 0, sizeof(to->q));
      std::memset(to->fitting, 0, sizeof(to->fitting));
    }
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
    const __m256i wide = _mm256_permute4x64_epi64(words, 0xd8);
    __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    auto* fitting = reinterpret_cast<__m128i*>(to->fitting + at);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to->q + at), q);
    _mm_storeu_si128(fitting, q);

    const __m128i zero = _mm_setzero_si128(), ones = _mm_set1_epi8(1);
    if (_mm_extract_epi64(q, 1) != 0) {
      to->eights = at / 8 + 2;
    } else if (_mm_cvtsi128_si64(q) != 0) {
      to->eights = at / 8 + 1;
    }
    const __m128i positive = _mm_maddubs_epi16(ones, _mm_max_epi8(q, zero));
    const __m128i negative = _mm_maddubs_epi16(ones, _mm_max_epi8(_mm_sub_epi8(zero, q), zero));
    auto add_next_four = [](__m128i a) { return _mm_add_epi16(a, _mm_shuffle_epi32(a, 0xb1)); };
    const __m128i most = _mm_max_epi16(add_next_four(positive), add_next_four(negative));
    if (_mm_movemask_epi8(_mm_cmpgt_epi16(most, _mm_set1_epi16(128))) != 0) {
      leave_out(to, at, _mm_max_epi16(positive, negative), most);
      q = _mm_loadu_si128(fitting);
    }
    __m128i sum = _mm_madd_epi16(_mm_maddubs_epi16(ones, q), _mm_set1_epi16(-128));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    to->start += _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }

  // Of 16 activations, those whose products do not fit: given by pairs and by two pairs that are added.
  static __attribute__((noinline)) void leave_out(Activations* to, int at, __m128i of_pairs, __m128i of_two_pairs) {
    constexpr int kFits = 128;
    alignas(16) int16_t pairs[8], two_pairs[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(pairs), of_pairs);
    _mm_store_si128(reinterpret_cast<__m128i*>(two_pairs), of_two_pairs);
    auto list = [&](int i) {
      const int32_t k = at + 4 * i;
      if (to->listed < kMaxListed) to->list[to->listed] = {k, load_int(to->fitting + k)};
      ++to->listed;
      std::memset(to->fitting + k, 0, 4);
    };
    for (int first = 0; first < 4; first += 2) {
      if (two_pairs[2 * first] <= kFits && two_pairs[2 * first + 1] <= kFits) continue;
      auto most = [&](int i) { return std::max(pairs[2 * i], pairs[2 * i + 1]); };
      const int larger = most(first + 1) > most(first) ? first + 1 : first, other = 2 * first + 1 - larger;
      list(larger);
      if (most(other) > kFits) list(other);
    }
  }

  static PYBATCH_INLINE __m256i load_columns(const char* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static PYBATCH_INLINE __m256i four(const char* p) { return _mm256_set1_epi32(load_int(p)); }
  static PYBATCH_INLINE __m256i widened(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

  // sum + the products of four k and eight columns, of any size.
  static PYBATCH_INLINE __m256i add_any(__m256i sum, __m256i w, __m256i x) {
    return _mm256_add_epi32(sum, widened(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))));
  }

  // Adds the products of eight k and eight columns for rows whose activations q(row) points to.
  template <bool kAny, int kTileRows, class Rows>
  static PYBATCH_INLINE void multiply_add(const char* columns, const Rows& q, __m256i* sum) {
    __m256i w0 = load_columns(columns), w1 = load_columns(columns + 4 * kPanel);
    if (!kAny) {
      w0 = _mm256_xor_si256(w0, _mm256_set1_epi8(-128));
      w1 = _mm256_xor_si256(w1, _mm256_set1_epi8(-128));
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const __m256i x0 = four(q(r)), x1 = four(q(r) + 4);
      if (kAny) {
        sum[r] = add_any(add_any(sum[r], w0, x0), w1, x1);
      } else {
        const __m256i words = _mm256_add_epi16(_mm256_maddubs_epi16(w0, x0), _mm256_maddubs_epi16(w1, x1));
        sum[r] = _mm256_add_epi32(sum[r], widened(words));
      }
    }
  }

  // The same for all of a step and kHalves halves of panels, the first of which is `half`.
  template <bool kAny, int kTileRows, int kHalves>
  static PYBATCH_INLINE void multiply_step(const TileArguments& t, const char* x, const char* weight, int64_t ahead,
                                           int half, int eights, Sum* sums) {
    auto row = [&](int r) PYBATCH_INLINE_LAMBDA { return reinterpret_cast<const Activations*>(x + r * t.x_stride); };
    auto sum_of = [&](int r, int i) PYBATCH_INLINE_LAMBDA {
      Sum& s = sums[(half + i) / 2 * kTileRows + r];
      return (half + i) % 2 == 0 ? &s.lo : &s.hi;
    };
    __m256i sum[kHalves][kTileRows];
    const char* q[(kTileRows + 3) / 4];  // with one address for all rows, their offsets would spill
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const __m256i start = _mm256_set1_epi32(kAny ? 0 : row(r)->start);
#pragma GCC unroll 8
      for (int i = 0; i < kHalves; ++i) sum[i][r] = _mm256_add_epi32(*sum_of(r, i), start);
      if (r % 4 == 0) {
        q[r / 4] = reinterpret_cast<const char*>(kAny ? row(r)->q : row(r)->fitting);
        asm("" : "+r"(q[r / 4]));
      }
    }
    auto at = [&](int r) PYBATCH_INLINE_LAMBDA { return q[r / 4] + r % 4 * t.x_stride; };
    const char* columns = weight + half / 2 * t.panel_stride + half % 2 * 32;
    const int64_t fetched = ahead + half % 2 * 64;
    for (; eights > 0; --eights, columns += 8 * kPanel) {
#pragma GCC unroll 8
      for (int i = 0; i < kHalves; ++i) {
        const char* of_half = columns + i / 2 * t.panel_stride + i % 2 * 32;
        __builtin_prefetch(of_half + fetched + i % 2 * 64, 0, 2);  // each half one of two lines
        multiply_add<kAny, kTileRows>(of_half, at, sum[i]);
      }
      for (const char*& p : q) p += 8;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < kHalves; ++i) *sum_of(r, i) = sum[i][r];
    }
  }

  // Halves of panels whose sums are in registers at once: one, or those of whole panels, of so many.
  static constexpr int halves_at_once(int rows, int all) {
    int at_once = min(Tile::kMaxSums / rows, all);
    while (at_once > 1 && (at_once % 2 != 0 || all % at_once != 0)) --at_once;
    return at_once;
  }

  template <int kTileRows, int kPanels>
  static void multiply_tile(const TileArguments& t) {
    constexpr int kHalves = halves_at_once(kTileRows, 2 * kPanels);
    auto* sums = static_cast<Sum*>(t.sums);
    if (!t.resume) std::memset(sums, 0, kTileRows * kPanels * sizeof(Sum));
    const int64_t ahead = t.fetch_first == 0 ? t.ahead : 0;  // the first tile reads the next block ahead for all
    const char *x = t.x, *weight = t.weight;
    for (int64_t step = 0; step < t.steps; ++step, x += kStepBytes, weight += kStepWeights * kPanel) {
      auto row = [&](int r) PYBATCH_INLINE_LAMBDA { return reinterpret_cast<const Activations*>(x + r * t.x_stride); };
      int eights = 0, listed = 0;
      for (int r = 0; r < kTileRows; ++r) {
        eights = std::max(eights, row(r)->eights);
        listed = std::max(listed, row(r)->listed);
      }
      const bool any = listed > kMaxListed;
      for (int half = 0; half < 2 * kPanels; half += kHalves) {
        if (any) {
          multiply_step<true, kTileRows, kHalves>(t, x, weight, ahead, half, eights, sums);
        } else {
          multiply_step<false, kTileRows, kHalves>(t, x, weight, ahead, half, eights, sums);
        }
      }
      if (any || listed == 0) continue;
      for (int p = 0; p < kPanels; ++p) {
        for (int r = 0; r < kTileRows; ++r) add_listed(*row(r), weight + p * t.panel_stride, sums[p * kTileRows + r]);
      }
    }
  }

  static PYBATCH_INLINE void add_listed(const Activations& row, const char* panel, Sum& sum) {
    Sum s = sum;
    for (const Four *f = row.list, *end = f + row.listed; f < end; ++f) {
      const char* columns = panel + f->k * kPanel;
      const __m256i x = _mm256_set1_epi32(f->q);
      s = {add_any(s.lo, load_columns(columns), x), add_any(s.hi, load_columns(columns + 32), x)};
    }
    sum = s;
  }

  static PYBATCH_INLINE F32x16 to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum.lo), _mm256_cvtepi32_ps(sum.hi)}; }
};

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE

#endif
