#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

void matmul_dense(const MatmulParams& p) {
  ConstMatrix x = f32_rows(p);
  Gemm g{p, x.data, x.row_stride * 4, packed_groups(p.k, size_of(p.weight_dtype)) * kPanel * 4, p.k};
  // One function for all types of weights, since most of the code is in it.
  auto finish = [&](int64_t panel, int64_t panels, int64_t row, int64_t rows, const F32x16* sums) {
    write_tile(p, panel, panels, row, rows, sums, [](int64_t) { return [](int64_t, F32x16 sum) { return sum; }; });
  };
  with_float_type(p.weight_dtype, [&](auto* type) { gemm<FloatOp<Pointee<decltype(type)>>>(g, finish); });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
