#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// An exact dot product of four int8 pairs a lane. A step is four k: 16 columns of four weights, and one row's four
// activations as `round_and_store` writes them, 16 at a time, from floats in [-127, 127].
#if defined(PYBATCH_ISA_AVX512)

// VNNI multiplies unsigned by signed, so activations are stored as q + 128 and every sum is 128 * (sum of the column's
// weights) too large.
struct Dot4 {
  using Sum = __m512i;
  using X = __m512i;
  using W = __m512i;
  using Stored = uint8_t;
  static constexpr int32_t kOffset = 128;
  static PYBATCH_INLINE X activation(const char* p) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
  static PYBATCH_INLINE W weight(const char* group, int) { return _mm512_loadu_si512(group); }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) { return _mm512_dpbusd_epi32(sum, x, w); }
  static PYBATCH_INLINE void round_and_store(Stored* out, F32x16 q) {
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(q.v), _mm512_set1_epi32(kOffset));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(biased));
  }
  using Excess = __m512i;
  static PYBATCH_INLINE Excess excess(const int32_t* column_sums) {
    return _mm512_slli_epi32(_mm512_loadu_si512(column_sums), 7);
  }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess excess) {
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, excess))};
  }
};

#elif defined(PYBATCH_ISA_AVX2)

// Bytes are widened to 16 bits, even and odd ones separately, and multiplied and added in pairs: k 0 and 2, then k 1
// and 3. Activations are stored in that order.
struct Dot4 {
  struct Sum {
    __m256i lo, hi;
  };
  struct X {
    __m256i even, odd;
  };
  struct W {
    __m256i even_lo, odd_lo, even_hi, odd_hi;
  };
  using Stored = int16_t;
  static PYBATCH_INLINE X activation(const char* p) {
    auto* pair = reinterpret_cast<const int32_t*>(p);
    return {_mm256_set1_epi32(pair[0]), _mm256_set1_epi32(pair[1])};
  }
  static PYBATCH_INLINE __m256i even(__m256i bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
  static PYBATCH_INLINE __m256i odd(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }
  static PYBATCH_INLINE W weight(const char* group, int) {
    auto* columns = reinterpret_cast<const __m256i*>(group);
    __m256i lo = _mm256_loadu_si256(columns), hi = _mm256_loadu_si256(columns + 1);
    return {even(lo), odd(lo), even(hi), odd(hi)};
  }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) {
    sum.lo = _mm256_add_epi32(sum.lo, _mm256_madd_epi16(x.even, w.even_lo));
    sum.hi = _mm256_add_epi32(sum.hi, _mm256_madd_epi16(x.even, w.even_hi));
    sum.lo = _mm256_add_epi32(sum.lo, _mm256_madd_epi16(x.odd, w.odd_lo));
    sum.hi = _mm256_add_epi32(sum.hi, _mm256_madd_epi16(x.odd, w.odd_hi));
    return sum;
  }
  static PYBATCH_INLINE void round_and_store(Stored* out, F32x16 q) {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(q.lo), _mm256_cvtps_epi32(q.hi));
    packed = _mm256_permute4x64_epi64(packed, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_shuffle_epi8(packed, order));
  }
  struct Excess {};
  static PYBATCH_INLINE Excess excess(const int32_t*) { return Excess(); }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess) {
    return {_mm256_cvtepi32_ps(sum.lo), _mm256_cvtepi32_ps(sum.hi)};
  }
};

#else

struct Dot4 {
  struct Sum {
    int32_t v[kPanel];
  };
  struct X {
    int8_t v[4];
  };
  struct W {
    const int8_t* v;
  };
  using Stored = int8_t;
  static PYBATCH_INLINE X activation(const char* p) {
    X x;
    std::memcpy(x.v, p, 4);
    return x;
  }
  static PYBATCH_INLINE W weight(const char* group, int) { return {reinterpret_cast<const int8_t*>(group)}; }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) {
    for (int i = 0; i < kPanel; ++i) {
      for (int j = 0; j < 4; ++j) sum.v[i] += x.v[j] * w.v[4 * i + j];
    }
    return sum;
  }
  static PYBATCH_INLINE void round_and_store(Stored* out, F32x16 q) {
    q = round(q);
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<int8_t>(q[i]);
  }
  struct Excess {};
  static PYBATCH_INLINE Excess excess(const int32_t*) { return Excess(); }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess) {
    float r[kLanes];
    for (int i = 0; i < kLanes; ++i) r[i] = static_cast<float>(sum.v[i]);
    return load(r);
  }
};

#endif

struct Dot4Op : Dot4 {
  static constexpr int kSteps = 1;
  static constexpr int kGroupBytes = 4 * kPanel;
  static constexpr int kStepBytes = 4 * sizeof(Stored);
  static constexpr bool kWiden = false;
  using Tile = StepTile;
  using Widened = Dot4Op;
};

// Symmetric: scale = max|x| / 127, q = x * (127 / max|x|) to the nearest integer, ties to even. Returns the scale,
// which is NaN if x has a value that is not finite, so that the row's results are NaN.
template <class T>
float quantize_row(const T* x, int64_t k, Dot4::Stored* out) {
  constexpr int kChains = 4;  // more than one, since each waits for its last maximum
  F32x16 largest[kChains], poison[kChains];
  for (int c = 0; c < kChains; ++c) largest[c] = poison[c] = zeros();
  auto take = [&](F32x16 v, int c) __attribute__((always_inline)) {
    largest[c] = max(abs(v), largest[c]);
    poison[c] = fma(v, zeros(), poison[c]);
  };
  int64_t i = 0;
  for (; i + kChains * kLanes <= k; i += kChains * kLanes) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) take(load(x + i + c * kLanes), c);
  }
  for (; i < k; i += kLanes) take(load_first(x + i, k - i), 0);
  const float most = reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
  const float scale = most / 127.0f + reduce_add((poison[0] + poison[1]) + (poison[2] + poison[3]));

  if (!(scale >= kSmallestNormal)) {
    for (i = 0; i < k; i += kLanes) Dot4::round_and_store(out + i, zeros());
    return scale != scale ? scale : 0.0f;
  }
  const F32x16 inverse = broadcast(127.0f / most);
  for (i = 0; i + kLanes <= k; i += kLanes) Dot4::round_and_store(out + i, load(x + i) * inverse);
  if (i < k) Dot4::round_and_store(out + i, load_first(x + i, k - i) * inverse);
  return scale;
}

}  // namespace

void matmul_w8a8(const MatmulParams& p) {
  int64_t stride = ceil_div(p.k, kLanes) * kLanes;
  if (stride * sizeof(Dot4::Stored) % 4096 == 0) stride += 64;  // such rows would share one cache set
  auto* rows = static_cast<Dot4::Stored*>(
      thread_scratch(kActivations, p.m * stride * static_cast<int64_t>(sizeof(Dot4::Stored))));
  auto* row_scales = static_cast<float*>(thread_scratch(kRowScales, p.m * 4));
  for_each_row(p, [&](int64_t row, auto* x) { row_scales[row] = quantize_row(x, p.k, rows + row * stride); });

  int64_t groups = ceil_div(p.k, 4), panel_stride = (groups + 1) * Dot4Op::kGroupBytes;
  Gemm g{p, rows, stride * static_cast<int64_t>(sizeof(Dot4::Stored)), panel_stride, groups};
  gemm<Dot4Op>(g, [&](int64_t panel, int64_t panels, int64_t row, int64_t rows, const Dot4::Sum* sums) {
    write_tile(p, panel, panels, row, rows, sums, [&](int64_t column) PYBATCH_INLINE_LAMBDA {
      F32x16 scale = load_first(p.scale + column, p.n - column);
      auto* last_group = static_cast<const char*>(p.weight) + (column / kPanel + 1) * panel_stride - 64;
      Dot4::Excess excess = Dot4::excess(reinterpret_cast<const int32_t*>(last_group));
      return [=](int64_t r, Dot4::Sum sum)
                 PYBATCH_INLINE_LAMBDA { return Dot4::to_float(sum, excess) * (broadcast(row_scales[r]) * scale); };
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
