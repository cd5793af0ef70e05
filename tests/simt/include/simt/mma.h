// The matrix instructions of a warp (PTX ISA 8.5, section 9.7.14: ldmatrix and mma.sync).
#pragma once

#include "simt/numbers.h"
#include "simt/runtime.h"

namespace simt {

// `count` 8x8 matrices of 16-bit elements; lane 8m + i gives the address of row i of matrix m.
void ldmatrix(uint32_t* r, int count, bool transposed, const void* row, const char* name, Location);

// d += the products of a and b, for eight columns of K = 16. The sum is exact to 2^-46 of its largest term, whatever their
// order, which the ISA leaves open, and rounded once.
constexpr int kSumDepth = 16, kSumColumns = 8;
void add_products(float (&d)[kSumColumns], const double (&a)[kSumDepth], const double (&b)[kSumDepth][kSumColumns]);

// d += a * b.
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format, const char* name, Location);
void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Location);

}  // namespace simt
