#include "cpu/gemm_experts.h"
#include "pybatch/matmul.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/gemm_tiles.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

#if defined(PYBATCH_ISA_AMX)

// bf16 by bf16, exact products of pairs. A block of 32 k adds up the even and the odd k apart, each in ascending order
// by fused multiply-adds, then the two, then what came before; what is subnormal counts as zero (Intel SDM, TDPBF16PS).
// For one row too: the sums' bits are not those of fp32.
struct Bf16Product {
  using Row = F32x16;
  template <int kSum, int kA, int kB>
  static PYBATCH_INLINE void multiply() {
    multiply_bf16<kSum, kA, kB>();
  }
};
using Bf16Tiles = TileOp<Bf16Product>;

// The activations in bf16, sixteen rows to a row of tiles, each with zeros after its last; rows past the last are what
// was there.
ConstMatrix bf16_rows(const MatmulParams& p) {
  constexpr int64_t kBlock = Bf16Tiles::kSteps * 2;
  int64_t stride = ceil_div(p.k, kBlock) * kBlock;
  if (stride % 2048 == 0) stride += kBlock;  // rows a multiple of 4 KiB apart would share one cache set
  auto* rows = static_cast<bf16*>(thread_scratch(kActivations, laid_out_rows(p, Bf16Tiles::kRows) * stride * 2));
  for_each_row<Bf16Tiles::kRows>(p, [&](int64_t row, auto* x) {
    bf16* to = rows + row * stride;
    std::memcpy(to, x, static_cast<size_t>(p.k) * 2);
    std::memset(to + p.k, 0, static_cast<size_t>(stride - p.k) * 2);
  });
  return {rows, stride, DType::bf16};
}

// What is subnormal counts as zero on the calling thread as long as this lives.
class FlushSubnormals {
 public:
  FlushSubnormals() { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  const unsigned before_ = _mm_getcsr();
};

// The sums of Bf16Tiles by vectors, for few rows: a tile takes as long for one as for sixteen. Activations are fp32.
struct Bf16Rows {
  using Sum = F32x16;
  using Widened = Bf16Rows;
  struct Tile : VectorTile {
    static constexpr int kMaxRows = 4, kMaxPanels = 4, kMaxSums = 8, kStepWork = 1;
  };
  static constexpr int kSteps = Bf16Tiles::kSteps, kGroupBytes = Bf16Tiles::kGroupBytes, kStepBytes = 8;
  static constexpr bool kWiden = false;

  template <int kRows, int kPanels>
  static void multiply_tile(const TileArguments& t) {
    auto* parked = static_cast<Sum*>(t.sums);
    const FlushSubnormals flush;
    const char *x = t.x, *weight = t.weight;
    asm volatile("" : "+r"(x), "+r"(weight) : : "memory");  // nothing is computed before
    Sum sum[kRows][kPanels];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sum[r][p] = t.resume ? parked[p * kRows + r] : zeros();
    }
    int64_t ahead = t.ahead;  // as WeightFetch, line by line
    auto multiply = [&](int64_t steps) PYBATCH_INLINE_LAMBDA {
      Sum even[kRows][kPanels] = {}, odd[kRows][kPanels] = {};
      for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          const auto* pairs = reinterpret_cast<const bf16*>(weight + p * t.panel_stride + 64 * s);
          const F32x16 first = load_of_pairs(pairs, 0), second = load_of_pairs(pairs, 1);
          __builtin_prefetch(reinterpret_cast<const char*>(pairs) + ahead);
#pragma GCC unroll 4
          for (int r = 0; r < kRows; ++r) {
            const auto* of_row = reinterpret_cast<const float*>(x + r * t.x_stride + kStepBytes * s);
            even[r][p] = fma(broadcast(of_row[0]), first, even[r][p]);
            odd[r][p] = fma(broadcast(of_row[1]), second, odd[r][p]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) {
          if (steps < kSteps) {  // a tile goes on with zeros, which make a zero positive
            even[r][p] = even[r][p] + zeros();
            odd[r][p] = odd[r][p] + zeros();
          }
          sum[r][p] = sum[r][p] + (even[r][p] + odd[r][p]);
        }
      }
    };
    for (int64_t group = t.steps / kSteps; group > 0; --group) {
      if (group == t.turn) ahead += t.jump;
      multiply(kSteps);
      x += kSteps * kStepBytes;
      weight += kGroupBytes;
    }
    if (const int64_t left = t.steps % kSteps; left > 0) multiply(left);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) parked[p * kRows + r] = sum[r][p];
    }
    asm volatile("" : : : "memory");  // all is computed
  }
};

#endif

}  // namespace

void matmul_dense(const MatmulParams& p) {
  const int64_t panel_stride = packed_groups(p.k, size_of(p.weight_dtype)) * kPanel * 4;
  // One function for all types of weights, since most of the code is in it.
  auto finish = [](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                   const F32x16* sums) {
    write_tile(p, panel, panels, row, rows, sums, [](int64_t) { return [](int64_t, F32x16 sum) { return sum; }; });
  };
#if defined(PYBATCH_ISA_AMX)
  if (p.weight_dtype == DType::bf16 && p.x.dtype == DType::bf16) {
    if (p.m <= Bf16Rows::Tile::kMaxRows && p.experts.count == 0) {
      const ConstMatrix x = f32_rows(p);
      const Gemm g{p, x.data, x.row_stride * 4, panel_stride, ceil_div(p.k, 2)};
      return gemm<Bf16Rows>(g, finish);
    }
    constexpr int64_t kRows = Bf16Tiles::kRows;
    const ConstMatrix x = bf16_rows(p);
    const Gemm g{p, x.data, kRows * x.row_stride * 2, panel_stride, ceil_div(p.k, 2), kRows};
    return gemm_by_expert<Bf16Tiles>(
        g, [&](const MatmulParams& part, int64_t panel, int64_t panels, int64_t row, int64_t rows,
               const Bf16Tiles::Sum* sums) { finish(part, panel, panels, kRows * row, kRows * rows, sums->row); });
  }
#endif
  ConstMatrix x = f32_rows(p);
  Gemm g{p, x.data, x.row_stride * 4, panel_stride, p.k};
  with_float_type(p.weight_dtype, [&](auto* type) { gemm_by_expert<FloatOp<Pointee<decltype(type)>>>(g, finish); });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
