#include "cpu/dot_maddubs.h"
#include "cpu/gemm_experts.h"
#include "cpu/vec_int.h"
#include "pybatch/matmul.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/gemm_tiles.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// An exact dot product of four int8 pairs a lane. A step is kGroups times four k: 16 columns of four weights, and one
// row's four activations as `round_and_store` writes them, 16 at a time, from floats in [-127, 127]. Where kGroups > 1,
// the last step may take a panel's column sums for weights: activations are zeros there. kRows rows are multiplied
// together, of which kInterleaved lie side by side, eight activations of each in turn.
template <int kGroupCount, int kRowCount>
struct ByteRows {
  static constexpr int kGroups = kGroupCount, kRows = kRowCount, kInterleaved = kRowCount;
  static constexpr int kStepBytes = 4 * kGroups * kInterleaved;
  static int64_t row_bytes(int64_t k) { return ceil_div(k, 64) * 64; }
};
struct OneGroup : ByteRows<1, 1> {
  using Tile = StepTile;
};

#if defined(PYBATCH_ANY_AVX512)

// VNNI multiplies unsigned by signed, so activations are stored as q + 128 and every sum is 128 * (sum of the column's
// weights) too large.
struct Dot4 : OneGroup {
  using Sum = __m512i;
  using X = __m512i;
  using W = __m512i;
  static constexpr int32_t kOffset = 128;
  static PYBATCH_INLINE X activation(const char* p) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)); }
  static PYBATCH_INLINE W weight(const char* group, int) { return _mm512_loadu_si512(group); }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) { return _mm512_dpbusd_epi32(sum, x, w); }
  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 q) {
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(q.v), _mm512_set1_epi32(kOffset));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + k), _mm512_cvtepi32_epi8(biased));
  }
  using Excess = __m512i;
  static PYBATCH_INLINE Excess excess(const int32_t* column_sums) {
    return _mm512_slli_epi32(_mm512_loadu_si512(column_sums), 7);
  }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess excess) {
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, excess))};
  }
};

#elif defined(PYBATCH_ISA_AVX2_VNNI)

// As with AVX-512.
struct Dot4 : OneGroup {
  using Sum = I32x16;
  using X = __m256i;
  using W = I32x16;
  static constexpr int32_t kOffset = 128;
  static PYBATCH_INLINE X activation(const char* p) { return _mm256_set1_epi32(load_int(p)); }
  static PYBATCH_INLINE W weight(const char* group, int) { return load_ints(group); }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) {
    return {_mm256_dpbusd_avx_epi32(sum.lo, x, w.lo), _mm256_dpbusd_avx_epi32(sum.hi, x, w.hi)};
  }
  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 q) {
    alignas(16) int8_t bytes[kLanes];
    store_bytes(bytes, to_int(q));
    const __m128i biased = _mm_xor_si128(_mm_load_si128(reinterpret_cast<__m128i*>(bytes)), _mm_set1_epi8(-128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + k), biased);
  }
  using Excess = I32x16;
  static PYBATCH_INLINE Excess excess(const int32_t* column_sums) { return load_ints(column_sums) << 7; }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess excess) {
    return PYBATCH_ISA_NAMESPACE::to_float({_mm256_sub_epi32(sum.lo, excess.lo), _mm256_sub_epi32(sum.hi, excess.hi)});
  }
};

#elif defined(PYBATCH_ISA_AVX2)

struct Dot4 : DotMaddubs {
  struct Excess {};
  static PYBATCH_INLINE Excess excess(const int32_t*) { return Excess(); }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess) { return DotMaddubs::to_float(sum); }
};

#elif defined(PYBATCH_ANY_NEON)

struct SignedBytes {
  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 q) {
    store_bytes(reinterpret_cast<int8_t*>(row) + k, to_int(q));
  }
  struct Excess {};
  static PYBATCH_INLINE Excess excess(const int32_t*) { return Excess(); }
  static PYBATCH_INLINE int8x16_t four(const char* p) { return vreinterpretq_s8_s32(vdupq_n_s32(load_int(p))); }
  static PYBATCH_INLINE int8x16_t columns(const char* group, int i) {
    return vld1q_s8(reinterpret_cast<const int8_t*>(group) + 16 * i);
  }
};

#if defined(PYBATCH_ISA_NEON)

// Two products fit 16 bits. Those that are added there are four k apart, since a step is two groups of weights; then
// neighbours are added in 32 bits.
struct Dot4 : ByteRows<2, 1>, SignedBytes {
  struct Tile : VectorTile {
    static constexpr int kMaxRows = 3, kMaxPanels = 2, kMaxSums = 3, kStepWork = 4;
  };
  struct Sum {
    int32x4_t v[8];  // v[i]: of columns 2i and 2i + 1, two parts of the sum each
  };
  struct X {
    int8x16_t first, second;
  };
  struct W {
    int8x16_t first[4], second[4];
  };
  static PYBATCH_INLINE X activation(const char* p) { return {four(p), four(p + 4)}; }
  static PYBATCH_INLINE W weight(const char* group, int) {
    W w;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      w.first[i] = columns(group, i);
      w.second[i] = columns(group, i + 4);
    }
    return w;
  }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int16x8_t lo = vmull_s8(vget_low_s8(w.first[i]), vget_low_s8(x.first));
      const int16x8_t hi = vmull_high_s8(w.first[i], x.first);
      sum.v[2 * i] = vpadalq_s16(sum.v[2 * i], vmlal_s8(lo, vget_low_s8(w.second[i]), vget_low_s8(x.second)));
      sum.v[2 * i + 1] = vpadalq_s16(sum.v[2 * i + 1], vmlal_high_s8(hi, w.second[i], x.second));
    }
    return sum;
  }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess) {
    auto of = [&](int i) PYBATCH_INLINE_LAMBDA { return vcvtq_f32_s32(vpaddq_s32(sum.v[2 * i], sum.v[2 * i + 1])); };
    return {{of(0), of(1), of(2), of(3)}};
  }
};

#else

struct Dot4 : OneGroup, SignedBytes {
  using Sum = I32x16;
  using X = int8x16_t;
  struct W {
    int8x16_t v[4];
  };
  static PYBATCH_INLINE X activation(const char* p) { return four(p); }
  static PYBATCH_INLINE W weight(const char* group, int) {
    return {{columns(group, 0), columns(group, 1), columns(group, 2), columns(group, 3)}};
  }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) {
    auto of = [&](int i) PYBATCH_INLINE_LAMBDA { return as_unsigned(vdotq_s32(as_signed(sum.part[i]), w.v[i], x)); };
    return {{of(0), of(1), of(2), of(3)}};
  }
  static PYBATCH_INLINE F32x16 to_float(Sum sum, Excess) { return PYBATCH_ISA_NAMESPACE::to_float(sum); }
};

#endif

#if defined(PYBATCH_ISA_NEON_I8MM)

// Two rows at a time, of which eight activations each lie side by side: an instruction multiplies them by two columns'.
struct Dot8 : ByteRows<2, 2>, SignedBytes {
  struct Tile : VectorTile {
    static constexpr int kMaxRows = 3, kMaxPanels = 2, kMaxSums = 3, kStepWork = 4;
  };
  struct Sum {
    int32x4_t v[8];  // v[i]: columns 2i and 2i + 1 of the first row, then of the second
    // Row r alone.
    PYBATCH_INLINE I32x16 row(int r) const {
      auto of = [&](int i) PYBATCH_INLINE_LAMBDA {
        const int64x2_t a = vreinterpretq_s64_s32(v[2 * i]), b = vreinterpretq_s64_s32(v[2 * i + 1]);
        return vreinterpretq_u32_s64(r == 0 ? vtrn1q_s64(a, b) : vtrn2q_s64(a, b));
      };
      return {{of(0), of(1), of(2), of(3)}};
    }
  };
  using X = int8x16_t;
  struct W {
    int8x16_t v[8];  // v[i]: eight k of column 2i, and of 2i + 1
  };
  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 q) {
    auto* out = reinterpret_cast<int8_t*>(row) + 2 * k;
    const int8x16_t bytes = lowest_bytes(to_int(q));
    vst1_s8(out, vget_low_s8(bytes));
    vst1_s8(out + 16, vget_high_s8(bytes));
  }
  static PYBATCH_INLINE X activation(const char* p) { return vld1q_s8(reinterpret_cast<const int8_t*>(p)); }
  static PYBATCH_INLINE W weight(const char* group, int) {
    W w;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int32x4_t first = vreinterpretq_s32_s8(columns(group, i));
      const int32x4_t second = vreinterpretq_s32_s8(columns(group, i + 4));
      w.v[2 * i] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
      w.v[2 * i + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
    return w;
  }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sum.v[i] = vmmlaq_s32(sum.v[i], x, w.v[i]);
    return sum;
  }
};
constexpr int64_t kPairRows = 4;  // rows from which it beats Dot4

#endif

#else

struct Dot4 : OneGroup {
  struct Sum {
    int32_t v[kPanel];
  };
  struct X {
    int8_t v[4];
  };
  struct W {
    const int8_t* v;
  };
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
  static PYBATCH_INLINE void round_and_store(char* row, int64_t k, F32x16 q) {
    q = round(q);
    for (int i = 0; i < kLanes; ++i) row[k + i] = static_cast<char>(static_cast<int8_t>(q[i]));
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

#if defined(PYBATCH_ISA_AMX)

struct ByteProduct {  // Dot4's
  using Row = __m512i;
  template <int kSum, int kA, int kB>
  static PYBATCH_INLINE void multiply() {
    multiply_unsigned_signed<kSum, kA, kB>();
  }
};
struct DotTiles : TileOp<ByteProduct> {
  static int64_t row_bytes(int64_t k) { return Dot4::row_bytes(k); }
};
constexpr int64_t kTileRows = StepTile::kMaxRows + 1;  // rows from which they beat Dot4, which would pass twice

#endif

template <class Dot>
struct DotOp : Dot {
  static constexpr int kSteps = 1;
  static constexpr int kGroupBytes = 4 * kPanel * Dot::kGroups;
  static constexpr bool kWiden = false;
  using Widened = DotOp;
};

// Symmetric: scale = max|x| / 127, q = x * (127 / max|x|) to the nearest integer, ties to even. Returns the scale,
// which is NaN if x has a value that is not finite, so that the row's results are NaN.
template <class Dot, class T>
float quantize_row(const T* x, int64_t k, char* row) {
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
    for (i = 0; i < k; i += kLanes) Dot::round_and_store(row, i, zeros());
    return scale != scale ? scale : 0.0f;
  }
  const F32x16 inverse = broadcast(127.0f / most);
  for (i = 0; i + kLanes <= k; i += kLanes) Dot::round_and_store(row, i, load(x + i) * inverse);
  if (i < k) Dot::round_and_store(row, i, load_first(x + i, k - i) * inverse);
  return scale;
}

template <class Dot, class Op = DotOp<Dot>, class Finish>
void multiply(const MatmulParams& p, float* row_scales, const Finish& finish) {
  constexpr int64_t kRows = Op::kRows, kInterleaved = Dot::kInterleaved;
  int64_t stride = Op::row_bytes(p.k);
  if (stride * kRows % 4096 == 0) stride += 64;  // such rows would share one cache set
  auto* rows = static_cast<char*>(thread_scratch(kActivations, laid_out_rows(p, kRows) * stride));
  for_each_row<kRows>(p, [&](int64_t row, auto* x) {
    char* out = rows + row / kInterleaved * kInterleaved * stride + row % kInterleaved * 8;
    row_scales[row] = quantize_row<Dot>(x, p.k, out);
  });
  const int64_t groups = ceil_div(p.k, 4);
  Gemm g{p, rows, stride * kRows, (groups + 1) * 4 * kPanel, ceil_div(groups, Dot::kGroups), kRows};
  gemm_by_expert<Op>(g, finish);
}

}  // namespace

void matmul_w8a8(const MatmulParams& params) {
  constexpr int64_t kMostTogether = 16;  // rows
  auto* row_scales = static_cast<float*>(thread_scratch(kRowScales, laid_out_rows(params, kMostTogether) * 4));
  const int64_t panel_stride = (ceil_div(params.k, 4) + 1) * 4 * kPanel;
  auto finish = [&](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                    const Dot4::Sum* sums) {
    write_tile(p, panel, panels, row, rows, sums, [&](int64_t column) PYBATCH_INLINE_LAMBDA {
      F32x16 scale = load_first(p.scale + column, p.n - column);
      auto* last_group = static_cast<const char*>(p.weight) + (column / kPanel + 1) * panel_stride - 64;
      Dot4::Excess excess = Dot4::excess(reinterpret_cast<const int32_t*>(last_group));
      return [=](int64_t r, Dot4::Sum sum)
                 PYBATCH_INLINE_LAMBDA { return Dot4::to_float(sum, excess) * (broadcast(row_scales[r]) * scale); };
    });
  };
#if defined(PYBATCH_ISA_AMX)
  if (rows_together(params) >= kTileRows) {
    constexpr int64_t kRows = DotTiles::kRows;
    return multiply<Dot4, DotTiles>(
        params, row_scales,
        [&](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
            const DotTiles::Sum* sums) { finish(p, panel, panels, kRows * row, kRows * rows, sums->row); });
  }
#elif defined(PYBATCH_ISA_NEON_I8MM)
  if (rows_together(params) >= kPairRows) {
    return multiply<Dot8>(
        params, row_scales,
        [&](const MatmulParams& p, int64_t panel, int64_t panels, int64_t pair, int64_t pairs, const Dot8::Sum* sums) {
          using Tile = Dot8::Tile;
          const int64_t row = 2 * pair, rows = min(2 * pairs, p.m - row);
          I32x16 of_rows[2 * Tile::kMaxRows * Tile::kMaxPanels];
          for (int64_t i = 0; i < panels; ++i) {
            for (int64_t r = 0; r < rows; ++r) {
              of_rows[i * rows + r] = sums[i * pairs + r / 2].row(static_cast<int>(r % 2));
            }
          }
          finish(p, panel, panels, row, rows, of_rows);
        });
  }
#endif
  multiply<Dot4>(params, row_scales, finish);
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
