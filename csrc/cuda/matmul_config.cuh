// Sizes of the tensor-core matmuls. No result depends on them.
#pragma once

#include <cstddef>

namespace pybatch::cuda {

constexpr int kWarpColumns = 32;  // output columns of a warp: two panels, two mma tiles of sixteen
constexpr int kSlabBytes = 64;    // of a row of x: sixteen bytes are what a lane gives to two mma steps
constexpr int kSlabs = 2;         // of a pipeline stage

// The sum over K is cut into this many parts that are added in ascending order: four warps can then share a column.
constexpr int kSplits = 4;

// A part's stages, of all. Blocks of K that have scales are two stages each, and in one part.
template <bool kInBlocks, class Int>
constexpr Int stages_of_part(Int stages) {
  const Int split = (stages + kSplits - 1) / kSplits;
  return kInBlocks ? split + split % 2 : split;
}

// A block has kWarpsN warps over neighbouring columns, each with all of K (many rows), or a warp for each part of K
// (few rows), as do those of sm90/ for several columns.
template <int kRows_, int kWarpsN_, int kWarpsK_>
struct MatmulTile {
  static constexpr int kRows = kRows_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_;
  static constexpr int kWarps = kWarpsN * kWarpsK;
  static_assert(kWarpsK == kSplits || kWarpsK == 1);

  static constexpr size_t x_bytes() { return kSlabs * kRows * kSlabBytes; }
  static constexpr size_t stage_bytes(size_t weight_bytes) {  // of the warps that share rows of x
    return x_bytes() + kWarpsN * kSlabs * weight_bytes;
  }
  // As many stages as fit into the shared memory that every chip since sm_80 has.
  static constexpr int stages(size_t weight_bytes) {
    const size_t fit = 96 * 1024 / (kWarpsK * stage_bytes(weight_bytes));
    return fit < 6 ? static_cast<int>(fit) : 6;
  }
};

using ManyRows = MatmulTile<64, 4, 1>;
template <int kRows>
using FewRows = MatmulTile<kRows, 1, kSplits>;

}  // namespace pybatch::cuda
