// The matrix instructions of a warp (PTX ISA 8.5, section 9.7.14: ldmatrix and mma.sync).
#pragma once

#include "simt/numbers.h"
#include "simt/runtime.h"

namespace simt {

// `count` 8x8 matrices of 16-bit elements; lane 8m + i gives the address of row i of matrix m.
void ldmatrix(uint32_t* r, int count, bool transposed, const void* row, const char* name, Location);

// d += the products of a row and eight columns of K = 16, as Hopper's tensor cores add them up (MMA-Sim, arXiv 2511.10909;
// bench/tensor_core_bits.cu has asked an H100): products and d are cut off 25 bits below the largest one's exponent, and
// their sum, whatever its order, after the 24 bits of a float.
constexpr int kSumDepth = 16, kSumColumns = 8, kSumBits = 25;
struct Row {
  double value[kSumDepth];
  int exponent[kSumDepth];
};
struct Columns {
  double value[kSumDepth][kSumColumns];
  int exponent[kSumDepth][kSumColumns];
};
void add_products(float (&d)[kSumColumns], const Row& a, const Columns& b);

// d += a * b.
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format, const char* name, Location);
void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Location);

}  // namespace simt
