// What every matmul does with a sum.
#pragma once

#include "cuda/activation.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

// From a column's sums to its products: times its (and the row's) scale, plus its bias.
struct ColumnScaling {
  float scale, bias;
  const float* row_scale;  // may be null

  template <class Sum>
  __device__ __forceinline__ float apply(Sum sum, int64_t row) const {
    return static_cast<float>(sum) * (row_scale != nullptr ? row_scale[row] * scale : scale) + bias;
  }
};

// Of p's column. The defaults change no float: a factor of 1, a summand of -0.
__device__ __forceinline__ ColumnScaling column_scaling(const MatmulParams& p, const float* row_scale, int64_t column) {
  return {p.scale != nullptr ? p.scale[column] : 1.0f,
          p.bias != nullptr ? load_as(p.bias_dtype, p.bias, column) : -0.0f, row_scale};
}

// Below, `type` is p.out.dtype; a caller that gives it as a constant has no switches in its loop.

__device__ __forceinline__ float rounded(DType type, float x) {
  switch (type) {
    case DType::f32: return x;
    case DType::f16: return to_float(from_float<f16>(x));
    default: return to_float(from_float<bf16>(x));
  }
}

// Epilogue::add and store. What the product is added to: for store -0, which changes no float.
__device__ __forceinline__ float load_residual(const MatmulParams& p, DType type, int64_t row, int64_t column) {
  return p.epilogue == Epilogue::add ? load_as(type, p.out.data, row * p.out.row_stride + column) : -0.0f;
}
__device__ __forceinline__ void write_sum(const MatmulParams& p, DType type, int64_t row, int64_t column, float product,
                                          float residual) {
  store_as(type, p.out.data, row * p.out.row_stride + column, rounded(type, product) + residual);
}

// Of a gate, where it and up are multiplied.
__device__ __forceinline__ float activated(Epilogue epilogue, float gate) {
  return epilogue == Epilogue::silu_mul ? Silu::apply(gate) : GeluTanh::apply(gate);
}

// Where gate and up are multiplied: the lanes of a warp call it together, each with one of 32 neighbouring columns of a
// row, the first a multiple of 32. The lower lanes have gates, the upper ones the values that they multiply.
__device__ __forceinline__ void write_gated(const MatmulParams& p, DType type, int64_t row, int64_t column,
                                            float product) {
  const float x = rounded(type, product), up = __shfl_down_sync(kAllLanes, x, kPanel);
  const int64_t panel = column / kPanel, to = panel / 2 * kPanel + column % kPanel;
  if (panel % 2 != 0 || to >= p.width) return;
  store_as(type, p.out.data, row * p.out.row_stride + to, activated(p.epilogue, x) * up);
}

// Any epilogue; the lanes of a warp call it as they do write_gated.
__device__ __forceinline__ void write_product(const MatmulParams& p, int64_t row, int64_t column, float product) {
  const DType type = p.out.dtype;
  if (is_gated(p.epilogue)) return write_gated(p, type, row, column, product);
  write_sum(p, type, row, column, product, load_residual(p, type, row, column));
}

}  // namespace pybatch::cuda
