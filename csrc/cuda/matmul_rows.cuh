// Which rows of a product a block of a matmul makes: a tile of all, or of one expert's (Experts in pybatch/matmul.h).
// How many tiles an expert has is read on the device, so that a launch depends on shapes alone.
#pragma once

#include "cuda/common.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

// Tiles of so many rows: where there are experts, the most that there can be.
inline int64_t row_tiles(const MatmulParams& p, int64_t rows) {
  const int64_t used = p.experts.count < p.m ? p.experts.count : p.m;  // experts, at most
  return p.experts.count == 0 ? ceil_div(p.m, rows) : (p.m + used * (rows - 1)) / rows;
}

// Rows that have one weight: the mean, if all experts have some.
inline int64_t rows_together(const MatmulParams& p) {
  return p.experts.count == 0 ? p.m : ceil_div(p.m, p.experts.count);
}

__device__ __forceinline__ int64_t x_row(const MatmulParams& p, int64_t row) {
  return p.experts.tokens != nullptr ? p.experts.tokens[row] : row;
}

// The first row of the block's tile. Where there are experts, p becomes the matmul of the tile's alone, up to p.m; a
// block that has no rows gets p.m. All lanes of a warp call it.
__device__ __forceinline__ int64_t take_tile(MatmulParams& p, int rows) {
  if (p.experts.count == 0) return static_cast<int64_t>(blockIdx.x) * rows;
  const int32_t* starts = p.experts.starts;
  const int lane = threadIdx.x % kWarp;
  int tile = static_cast<int>(blockIdx.x);
  for (int64_t first = 0; first < p.experts.count; first += kWarp) {
    const int64_t mine = first + lane;
    const int tiles = mine < p.experts.count ? (starts[mine + 1] - starts[mine] + rows - 1) / rows : 0;
    int until = tiles;  // tiles of this lane's expert and those before it
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const int others = __shfl_up_sync(kAllLanes, until, offset);
      if (lane >= offset) until += others;
    }
    const uint32_t behind = __ballot_sync(kAllLanes, tile < until);
    if (behind != 0) {
      const int found = __ffs(static_cast<int>(behind)) - 1;
      const int64_t expert = first + found;
      tile -= __shfl_sync(kAllLanes, until - tiles, found);
      p.weight = static_cast<const char*>(p.weight) + expert * p.experts.weight_bytes;
      if (p.scale != nullptr) p.scale += expert * p.n;
      if (p.bias != nullptr) {
        p.bias = static_cast<const char*>(p.bias) + expert * p.n * (p.bias_dtype == DType::f32 ? 4 : 2);
      }
      p.m = starts[expert + 1];
      return starts[expert] + static_cast<int64_t>(tile) * rows;
    }
    tile -= __shfl_sync(kAllLanes, until, kWarp - 1);
  }
  return p.m;
}

}  // namespace pybatch::cuda
