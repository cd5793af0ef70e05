// out = x @ weight^T + bias. Every output element is one fp32 (or exact int32) sum over K in ascending order, by the
// same instructions whatever M is, so a row's bits do not depend on the rows beside it.
//
// Packed weights, the same on every instruction set, N in panels of 16 columns padded with zeros:
//   dense  [ceil(N/16)][K][16]           fp32, fp16 or bf16
//   int8   [ceil(N/16)][K4 + 1][16][4]   K in groups of four, K4 = ceil(K/4); the last group of a panel holds, as
//                                        int32, the 16 column sums that an unsigned-by-signed dot product needs
#pragma once

#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kPanel = 16;

// matmul_dense: weights as they are, fp32 sums.
// matmul_w8a16: int8 weights widened to fp32, activations as they are; the sum times the weight scale, plus bias.
// matmul_w8a8: activations quantised per row, scale = max|x| / 127, q = round-half-even(x / scale) (row scale 0: all
//   q are 0; a value that is not finite: the row's results are NaN); the s32 sum is exact, for k <= 131072; out =
//   float(sum) * (row scale * weight scale) + bias.
struct MatmulParams {
  ConstMatrix x;       // [m, k], f32, f16 or bf16
  const void* weight;  // packed, 64-byte aligned
  DType weight_dtype;  // f32, f16, bf16 or i8
  const float* scale;  // [n]; i8 weights only: weight = q * scale
  const void* bias;    // [n], bias_dtype, may be null
  DType bias_dtype;
  Matrix out;  // [m, n], f32, f16 or bf16
  int64_t m, n, k;
};

}  // namespace pybatch
