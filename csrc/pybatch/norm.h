#pragma once

#include "pybatch/types.h"

namespace pybatch {

// rms_norm (Zhang & Sennrich 2019):  x / sqrt(mean(x^2) + eps) * weight
// layer_norm (Ba et al. 2016):        (x - mean) / sqrt(var + eps) * weight + bias
//
// One row at a time: if residual is set, residual += x (rounded to its dtype), and the sum is normalised.
// Sums run in fp32 in one fixed order.
struct NormParams {
  ConstMatrix x;       // [rows, width]
  Matrix residual;     // [rows, width], x's dtype; data may be null
  Matrix out;          // [rows, width], x's dtype
  const void* weight;  // [width], x's dtype
  const void* bias;    // [width], x's dtype, may be null; LayerNorm only
  float eps;
  int64_t rows, width;
};

// gated_rms_norm: RMSNorm of each head of a row, times silu(gate). Of 16 bits, what is normalised is rounded before the
// weight is applied, and again after that, as the models were trained.
struct GatedNormParams {
  ConstMatrix x, gate;  // [rows, heads * width]
  Matrix out;           // [rows, heads * width], x's dtype
  const void* weight;   // [width], x's dtype
  float eps;
  int64_t rows, heads, width;
};

// add_normed: residual = (residual + factor * rms_norm(x)) * scale, with the bits of the separate steps, each rounded
// to x's dtype.
struct AddNormedParams {
  ConstMatrix x;       // [rows, width]
  Matrix residual;     // [rows, width], x's dtype
  const void* weight;  // [width], x's dtype; null: x is added as it is
  float eps, factor, scale;
  int64_t rows, width;
};

}  // namespace pybatch
