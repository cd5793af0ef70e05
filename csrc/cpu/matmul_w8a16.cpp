#include "cpu/gemm_experts.h"
#include "cpu/vec_int.h"
#include "pybatch/matmul.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Int8 weights [16][4] to a group, widened exactly to fp32: step s is byte s of each column's four.
struct Int8WeightOp : FloatOp<float> {
  static constexpr int kSteps = 4;
  static constexpr int kGroupBytes = 4 * kPanel;
  static constexpr bool kWiden = true;

  static PYBATCH_INLINE F32x16 weight(const char* group, int step) {
#if defined(PYBATCH_ANY_AVX512)
    __m512i top = _mm512_loadu_si512(group);
    if (step < 3) top = _mm512_slli_epi32(top, 24 - 8 * step);
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24))};
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

}  // namespace

void matmul_w8a16(const MatmulParams& params) {
  ConstMatrix x = f32_rows(params);
  Gemm g{params, x.data, x.row_stride * 4, packed_groups(params.k, 1) * Int8WeightOp::kGroupBytes, params.k};
  gemm_by_expert<Int8WeightOp>(
      g, [](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows, const F32x16* sums) {
        write_tile(p, panel, panels, row, rows, sums, [&](int64_t column) {
          F32x16 scale = load_first(p.scale + column, p.n - column);
          return [=](int64_t, F32x16 sum) { return sum * scale; };
        });
      });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
