#pragma once

#include "pybatch/matmul.h"
#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kMostRank = 1024;  // of an adapter

// Columns of a product that one run of sixteen of b's belongs to, and the part of a that they are made from: such as q,
// k or v in a projection to all three.
struct LoraPanel {
  int32_t column, columns, part;  // columns: 1 to 16
};

// add_lora: product[i] += (x[i] @ a^T) @ b^T of the adapter that row i has (LoRA, Hu et al. 2021; adapters of a batch
// mixed as in Punica, Chen et al. 2023), summed in fp32 and rounded once to product's dtype. A row without an adapter,
// and columns of parts that its adapter does not change, are left as they are. With a gated epilogue out = act(gate) *
// up of the sum then, for all rows, as a matmul's epilogue.
//
// A row's sums have one order, whatever rows are beside it: over k of a chunk in two chains, over chunks and over ranks
// ascending.
struct LoraParams {
  ConstMatrix x;            // [m, k], f32, f16 or bf16
  const int32_t* slots;     // [m]: the adapter of each row, negative: none
  const void* a;            // [adapters][parts][rank / 16][k][16], `dtype`; 64-byte aligned, as b
  const void* b;            // [adapters][panels][rank][16]; zeros beyond a panel's columns
  DType dtype;              // f32, f16 or bf16
  const int32_t* ranks;     // [adapters][parts], each at most rank; 0: the part is not changed
  const LoraPanel* panels;  // [panels], ascending, apart
  Matrix product;           // [m, n]
  Matrix out;               // [m, width], product's dtype; no data unless the epilogue is gated
  Epilogue epilogue;        // store or gated; if it is gated, panels are 32 columns of a gate and its up by turns
  int64_t m, k, adapters, parts, rank, num_panels, width;

  constexpr int64_t sums() const { return parts * rank; }  // of x @ a^T, of a row
  // Inlined always: a copy compiled for one instruction set would else stand for those of all (check_symbols.cmake).
  [[gnu::always_inline]] constexpr int64_t most_rank(int64_t slot) const {
    int32_t most = 0;
    for (int64_t part = 0; part < parts; ++part) {
      const int32_t each = ranks[slot * parts + part];
      most = each > most ? each : most;
    }
    return most;
  }
};

}  // namespace pybatch
