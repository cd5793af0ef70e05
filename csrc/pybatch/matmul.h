// out = x @ weight^T + bias, fused with the norm before and the step after. Every output element is one fp32 (or
// exact int32) sum over K in one order, ascending but for AMX's products of bf16 (matmul_dense.cpp), by the same
// instructions for every M, so a row's bits do not depend on the other rows.
//
// Packed weights, the same on every instruction set, N in panels of 16 columns padded with zeros:
//   fp32   [ceil(N/16)][K][16]
//   16-bit [ceil(N/16)][ceil(K/2)][16][2]  K in pairs, padded with a zero: widening bf16 is then a shift or a mask, and
//                                        instructions that multiply pairs take them as they are
//   int8   [ceil(N/16)][K4 + 1][16][4]   K in groups of four, K4 = ceil(K/4); the last group of a panel holds, as
//                                        int32, the 16 column sums that an unsigned-by-signed dot product needs
//   e4m3   likewise; the last group is zeros. Or [ceil(N/16)][ceil(K/128)][33][16][4], in blocks of 128 of K, padded
//                                        with zeros: the last group of each holds, as floats, its 16 columns' scales
//   GGUF   [ceil(N/16)][K/B][16 * S]     as in the file, in blocks of B weights of a column and S bytes, those of 16
//                                        columns word by word: [S/4 words][16][4 bytes], then what a block has beside
//                                        words, [16-bit floats][16]: its scale d and, if it has one, its min (m or
//                                        dmin). IQ4_XS has the upper bits of its scales there, and MXFP4, in place of
//                                        a float, [16] bytes
#pragma once

#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kPanel = 16;

// Groups of four bytes that a column of k dense, int8 or e4m3 weights, of so many bytes each, has in its panel.
constexpr int64_t packed_groups(int64_t k, int64_t bytes) { return (k * bytes + 3) / 4 + (bytes == 1 ? 1 : 0); }

// Bytes of a panel; in_blocks: of e4m3 weights.
constexpr int64_t kBlockK = 128, kBlockCodes = kBlockK * kPanel, kBlockBytes = kBlockCodes + kPanel * 4;
constexpr int64_t panel_bytes(int64_t k, int64_t bytes, bool in_blocks = false) {
  return in_blocks ? (k + kBlockK - 1) / kBlockK * kBlockBytes : packed_groups(k, bytes) * kPanel * 4;
}
// Where codes lie in a panel in blocks that are so far from the first without the scales between.
constexpr int64_t past_scales(int64_t offset) { return offset + offset / kBlockCodes * (kBlockBytes - kBlockCodes); }

// Where weight i of a column of k is, in weights.
constexpr int64_t packed_at(int64_t column, int64_t i, int64_t k, int64_t bytes) {
  const int64_t group = 4 / bytes, groups = column / kPanel * packed_groups(k, bytes) + i / group;
  return (groups * kPanel + column % kPanel) * group + i % group;
}
constexpr int64_t in_blocks_at(int64_t column, int64_t i, int64_t k) {
  const int64_t in_panel = i / 4 * kPanel * 4 + column % kPanel * 4 + i % 4;
  return column / kPanel * panel_bytes(k, 1, true) + past_scales(in_panel);
}
// Where the scale of a block of a column is, in bytes.
constexpr int64_t block_scale_at(int64_t column, int64_t block, int64_t k) {
  return column / kPanel * panel_bytes(k, 1, true) + block * kBlockBytes + kBlockCodes + column % kPanel * 4;
}

// Types of quantised tensors in GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
enum class GgufType { q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4 };

// A step is 32 weights: weight = scale * (code - offset) + min, with one scale, or two for 16 weights each, and
// likewise no min, one or two. With a code book the number that a code stands for takes the place of code - offset.
struct GgufBlock {
  const char* name;
  int weights, bytes;
  int scales, mins;  // of a step
  bool code_book;    // such weights are packed as int8, the others as uint8: IQ4_NL and Q4_0 have blocks of one size
};
constexpr GgufBlock kGgufBlocks[] = {
    {"Q4_0", 32, 18, 1, 0, false},   {"Q4_1", 32, 20, 1, 1, false},   {"Q5_0", 32, 22, 1, 0, false},
    {"Q5_1", 32, 24, 1, 1, false},   {"Q8_0", 32, 34, 1, 0, false},   {"Q2_K", 256, 84, 2, 2, false},
    {"Q3_K", 256, 110, 2, 0, false}, {"Q4_K", 256, 144, 1, 1, false}, {"Q5_K", 256, 176, 1, 1, false},
    {"Q6_K", 256, 210, 2, 0, false}, {"IQ4_NL", 32, 18, 1, 0, true},  {"IQ4_XS", 256, 136, 1, 0, true},
    {"MXFP4", 32, 17, 1, 0, true}};
template <GgufType kType>
struct GgufConstants {
  static constexpr GgufBlock kBlock = kGgufBlocks[static_cast<int>(kType)];
  static constexpr int kWeights = kBlock.weights, kBytes = kBlock.bytes, kScales = kBlock.scales, kMins = kBlock.mins;
};

// Code books: of IQ4_NL and IQ4_XS, and of MXFP4, where it is twice the numbers of E2M1 (OCP Microscaling Formats 1.0).
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kFp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// What is done with the product, after it is rounded to out's dtype:
//   store          out = product
//   add            out += product
//   silu_mul       out = silu(gate) * up, where of every 32 columns of the product 16 are gate and the next 16 up
//   gelu_tanh_mul  likewise with the tanh form of GELU
enum class Epilogue { store, add, silu_mul, gelu_tanh_mul };

constexpr bool is_gated(Epilogue e) { return e == Epilogue::silu_mul || e == Epilogue::gelu_tanh_mul; }

// Where each row of a product is multiplied by one of several weights (mixture of experts, Shazeer et al. 2017): those
// of expert e are rows starts[e] to starts[e + 1]. Weights, scales and biases lie one expert's after the other's. All
// of it is read as the kernel runs. With `places`, a row of out is the sum over j of weights[t][j] * row places[t][j]
// of the product, which is rounded to out's dtype first: by one fma each in ascending j, and rounded. The epilogue,
// store or add, takes it for the product.
struct Experts {
  int64_t count;          // 0: one weight multiplies all rows
  const int32_t* starts;  // [count + 1], ascending from 0 to m
  const int32_t* tokens;  // [m], may be null: the row of x that each row of the product is of
  const int32_t* places;  // [m / top_k][top_k], may be null
  const float* weights;   // likewise
  int64_t top_k;
  int64_t weight_bytes;  // of one expert's packed weight
  int64_t x_rows;        // of x
};

// matmul_dense: weights as they are, fp32 sums.
// matmul_w8a16: int8 or e4m3 weights widened exactly, activations as they are; the fp32 sum (of weights in blocks, of
//   each block's sum, or its weights, times its scale) times the weight scale, plus bias.
// matmul_w8a8: activations quantised per row, scale = max|x| / 127, q = round-half-even(x * (127 / max|x|)) (with a
//   scale below the smallest normal number, it and all q are 0; with an inf or NaN, the row's results are NaN); the s32
//   sum is exact, for k <= 131072; out = float(sum) * (row scale * weight scale) + bias.
// matmul_gguf: activations quantised likewise, in blocks of 32; dot products of blocks are exact in s32; out = the fp32
//   sum over blocks, in ascending order and by one fma each, of float(dot) * (weight scale * scale), for each half of a
//   block if they have different weight scales, and of weight min * (scale * sum(q)), likewise.
struct MatmulParams {
  ConstMatrix x;       // [x_rows(), k], f32, f16 or bf16
  const void* weight;  // packed, 64-byte aligned
  DType weight_dtype;  // f32, f16, bf16, i8 or e4m3
  bool in_blocks;      // e4m3 only
  GgufType gguf_type;  // matmul_gguf only
  const float* scale;  // [n]; i8 and e4m3 weights only: weight = q * scale
  const void* bias;    // [n], bias_dtype, may be null
  DType bias_dtype;
  const void* norm;  // [k], x's dtype, may be null: x is RMSNorm(x) * norm, rounded as rms_norm rounds it
  float norm_eps;
  Epilogue epilogue;
  Matrix out;  // [m, width], f32, f16 or bf16; shares no memory with x
  int64_t m, n, k;
  int64_t width;  // n, or where gate and up are multiplied at most n / 2, with n = 2 * width rounded up to whole panels
  Experts experts;

  constexpr int64_t x_rows() const { return experts.count != 0 ? experts.x_rows : m; }
};

}  // namespace pybatch
