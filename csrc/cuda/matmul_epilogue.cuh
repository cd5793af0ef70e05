// What becomes of a product, for every matmul.
#pragma once

#include "cuda/activation.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

// The lanes of a warp call it together, each with one of 32 neighbouring columns of a row, the first a multiple of 32:
// where gate and up are multiplied, the lower lanes have gates and the upper ones what they gate.
__device__ __forceinline__ void write_product(const MatmulParams& p, int64_t row, int64_t column, float product) {
  auto rounded = [&](float x) {
    switch (p.out.dtype) {
      case DType::f32: return x;
      case DType::f16: return to_float(from_float<f16>(x));
      default: return to_float(from_float<bf16>(x));
    }
  };
  float x = rounded(product);
  if (is_gated(p.epilogue)) {
    const float up = __shfl_down_sync(kAllLanes, x, kPanel);
    const int64_t panel = column / kPanel;
    column = panel / 2 * kPanel + column % kPanel;
    if (panel % 2 != 0 || column >= p.width) return;
    x = (p.epilogue == Epilogue::silu_mul ? Silu::apply(x) : GeluTanh::apply(x)) * up;
  }
  const int64_t at = row * p.out.row_stride + column;
  if (p.epilogue == Epilogue::add) x += load_as(p.out.dtype, p.out.data, at);
  store_as(p.out.dtype, p.out.data, at, x);
}

}  // namespace pybatch::cuda
