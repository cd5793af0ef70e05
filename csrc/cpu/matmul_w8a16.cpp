#include "cpu/gemm_experts.h"
#include "cpu/vec_bytes.h"
#include "pybatch/matmul.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Weights [16][4] to a group, widened exactly to fp32: step s is byte s of each column's four.
struct ByteWeightOp : FloatOp<float> {
  static constexpr bool kInBlocks = false;
  static constexpr int kSteps = 4;
  static constexpr int kGroupBytes = 4 * kPanel;
  static constexpr bool kWiden = true;
};

struct Int8WeightOp : ByteWeightOp {
  static PYBATCH_INLINE F32x16 weight(const char* group, int step) {
#if defined(PYBATCH_ANY_AVX512)
    // w + 128 is put into the mantissa of 2 ^ 23, or of 2 ^ 15 for a word's second byte, and 2 ^ n + 128 taken off: two
    // instructions, which either port of vectors takes; to shift it takes three, two of them on one. A word's upper
    // bytes are the lower ones two bytes further on: behind the last group are the column sums.
    const int shift = step % 2 * 8, power = 23 - shift;
    const __m512i bytes = _mm512_loadu_si512(group + step / 2 * 2);
    // Of each bit c, or a ^ c where b is set: the byte with its sign turned over, among the bits of the power.
    const __m512i number = _mm512_ternarylogic_epi32(bytes, _mm512_set1_epi32(0xff << shift),
                                                     _mm512_set1_epi32((127 + power) << 23 | 0x80 << shift), 0x6a);
    return {_mm512_castsi512_ps(number) - _mm512_set1_ps(static_cast<float>((1 << power) + 128))};
#elif defined(PYBATCH_ANY_AVX2)
    auto widen = [&](const char* columns) {
      __m256i top = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns));
      if (step < 3) top = _mm256_slli_epi32(top, 24 - 8 * step);
      return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24));
    };
    return {widen(group), widen(group + 32)};
#elif defined(PYBATCH_ANY_NEON)
    return to_float(signed_top_byte(load_ints(group) << (24 - 8 * step)));
#else
    float w[kLanes];
    for (int i = 0; i < kLanes; ++i) w[i] = static_cast<float>(static_cast<int8_t>(group[4 * i + step]));
    return load(w);
#endif
  }
};

struct Float8WeightOp : ByteWeightOp {
  static PYBATCH_INLINE F32x16 weight(const char* group, int step) { return float8(load_ints(group), step); }
};

// A group is a block, with its columns' scales.
struct Float8BlockOp : Float8WeightOp {
  static constexpr bool kInBlocks = true;
  static constexpr int kSteps = kBlockK;
  static constexpr int kGroupBytes = kBlockBytes;

  static PYBATCH_INLINE F32x16 weight(const char* block, int step) {
    const char* group = block + step / 4 * (4 * kPanel);
    return Float8WeightOp::weight(group, step % 4) * load(reinterpret_cast<const float*>(block + kBlockCodes));
  }
};

template <class Op>
void multiply(const MatmulParams& params) {
  ConstMatrix x = f32_rows(params);
  Gemm g{params, x.data, x.row_stride * 4, panel_bytes(params.k, 1, Op::kInBlocks), params.k};
  gemm_by_expert<Op>(
      g, [](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows, const F32x16* sums) {
        write_tile(p, panel, panels, row, rows, sums, [&](int64_t column) {
          F32x16 scale = load_first(p.scale + column, p.n - column);
          return [=](int64_t, F32x16 sum) { return sum * scale; };
        });
      });
}

}  // namespace

void matmul_w8a16(const MatmulParams& p) {
  if (p.weight_dtype != DType::e4m3) return multiply<Int8WeightOp>(p);
  p.in_blocks ? multiply<Float8BlockOp>(p) : multiply<Float8WeightOp>(p);
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
