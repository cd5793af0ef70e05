// The matmul of at most 32 rows: as in ../matmul_kernel.cuh a warp has 32 columns and a part of K, but stages are
// filled by bulk copies that a few lanes start, and weights lie in them as packed. The warps that have one part of K
// share the stages, and so the rows of x, which would else be read again for each 32 columns.
#pragma once

#include "cuda/matmul_kernel.cuh"
#include "cuda/sm90/matmul_config.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/tensor_map.cuh"

namespace pybatch::cuda {

// A ring of stages, of the warps that have one part of K. A box is 128 bytes of the rows of x, and the weights that
// multiply them.
template <class Op, class Tile>
struct Ring {
  char* stages;            // [kStages], each the boxes of x, and then those of each panel
  uint64_t* filled;        // [kStages]
  const char* panel;       // the lane's, of the part of K
  int boxes, panel_bytes;  // of the part; the last box may be short
  int32_t first_x;         // where the part begins in a row of x, in bytes

  // All lanes of one of the warps call it, once the stage is free, to fill it with boxes from `box` on.
  __device__ __forceinline__ void fill(const CUtensorMap& rows, int stage, int box, int lane) const {
    char* to = stages + stage * Tile::kStageBytes;
    char* to_weights = to + Tile::kBoxes * Tile::kRowBytes;
    const int count = boxes - box < Tile::kBoxes ? boxes - box : Tile::kBoxes, from = box * Tile::kPanelBytes;
    int bytes = count * Tile::kPanelBytes;  // of a panel
    if (panel_bytes - from < bytes) {       // beyond K
      for (int at = panel_bytes - from + lane * 16; at < bytes; at += kWarp * 16) {
#pragma unroll 1
        for (int i = 0; i < Tile::kPanels; ++i) {
          *reinterpret_cast<uint4*>(to_weights + i * Tile::kPanelStage + at) = uint4{};
        }
      }
      __syncwarp();
      bytes = panel_bytes - from;
    }
    if (lane == 0) {
      mbarrier_arrive_expect_tx(filled + stage, count * Tile::kRowBytes + Tile::kPanels * bytes);
#pragma unroll
      for (int i = 0; i < Tile::kBoxes; ++i) {
        if (i >= count) break;
        cp_async_bulk_tensor_2d(to + i * Tile::kRowBytes, rows, first_x + (box + i) * kStageK, 0, filled + stage);
      }
    }
    __syncwarp();
    if (lane < Tile::kPanels) {
      const char* first = panel + Op::place_in_panel(from);
      cp_async_bulk(to_weights + lane * Tile::kPanelStage, first, bytes, filled + stage);
    }
  }
};

template <class Op, class Tile>
__global__ void __launch_bounds__(Tile::kWarps* kWarp, Tile::kBlocks)
    few_rows_kernel(MatmulParams p, const float* row_scale, const __grid_constant__ CUtensorMap rows) {
  begin_kernel();
  using Sum = typename Op::Sum;
  constexpr int kStages = Tile::kStages, kTokenTiles = Tile::kRows / 8;
  // The same in all lanes, as the compiler then knows.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
  const int warp_n = warp % Tile::kWarpsN, warp_k = warp / Tile::kWarpsN;
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int64_t block_column = static_cast<int64_t>(blockIdx.x) * (Tile::kWarpsN * kWarpColumns);

  const int all_boxes = static_cast<int>(ceil_div(p.k * static_cast<int64_t>(sizeof(typename Op::X)), kStageK));
  const int split = stages_of_part<Op::kInBlocks>(all_boxes), begin = warp_k * split;
  const int64_t offset = int64_t{begin} * Tile::kPanelBytes,
                left = ceil_div(p.k * Op::kWeightBytes, 4) * (kPanel * 4) - offset;
  const int64_t panel = block_column / kPanel + lane, last_panel = ceil_div(p.n, kPanel) - 1;
  auto* barriers = reinterpret_cast<uint64_t*>(dynamic_shared<char>() + kSplits * kStages * Tile::kStageBytes);
  // Beyond the last panel it is copied again.
  const Ring<Op, Tile> ring = {
      dynamic_shared<char>() + warp_k * kStages * Tile::kStageBytes,
      barriers + warp_k * kStages,
      static_cast<const char*>(p.weight) + (panel < last_panel ? panel : last_panel) * Op::bytes_of_panel(p.k) +
          Op::place_in_panel(offset),
      all_boxes - begin < split ? all_boxes - begin : split,  // may be negative
      static_cast<int>(left < int64_t{split} * Tile::kPanelBytes ? left : int64_t{split} * Tile::kPanelBytes),
      begin * kStageK};
  auto wait_for_others = [&] {
    Tile::kWarpsN == 1 ? __syncwarp() : named_barrier_sync(1 + warp_k, Tile::kWarpsN * kWarp);
  };
  if (warp_n == 0 && lane == 0) {
    for (int i = 0; i < kStages; ++i) mbarrier_init(ring.filled + i, 1);
    fence_proxy_async();
  }
  wait_for_others();
  if (warp_n == 0) {
    for (int i = 0; i < kStages; ++i) {
      if (i * Tile::kBoxes < ring.boxes) ring.fill(rows, i, i * Tile::kBoxes, lane);
    }
  }

  // Where a lane's x and weights of a box are. A step's sixteen bytes of x lie as the swizzle has them.
  const int of_weights = Tile::kBoxes * Tile::kRowBytes + (2 * warp_n + g / 4) * Tile::kPanelStage + g % 4 * 16 +
                         t * (Op::group_of_lane(0, 1) * kPanel * 4);
  int of_x[4];
#pragma unroll
  for (int step = 0; step < 4; ++step) of_x[step] = g * kStageK + ((2 * step + t / 2) ^ g) * 16 + t % 2 * 8;
  Sum sum[2][kTokenTiles][4] = {};
  [[maybe_unused]] Sum total[2][kTokenTiles][4] = {};  // of weights in blocks
  [[maybe_unused]] float4 scales{};
  [[maybe_unused]] const char* of_lane = nullptr;  // its columns' panel
  if constexpr (Op::kInBlocks) {
    const int64_t own = block_column / kPanel + 2 * warp_n + g / 4;
    of_lane = static_cast<const char*>(p.weight) + (own < last_panel ? own : last_panel) * Op::bytes_of_panel(p.k);
  }
  int stage = 0;
  uint32_t round = 0;
  for (int box = 0; box < ring.boxes; box += Tile::kBoxes) {
    while (!mbarrier_try_wait_parity(ring.filled + stage, round % 2)) {
    }
    const char* here = ring.stages + stage * Tile::kStageBytes;
    const char* here_weights = here + of_weights;
#pragma unroll
    for (int i = 0; i < Tile::kBoxes; ++i) {
      if (i > 0 && box + i >= ring.boxes) break;
      if constexpr (Op::kInBlocks) {
        if ((box + i) % 2 == 0) scales = load_block_scales(of_lane, (begin + box + i) / 2, g);
      }
#pragma unroll
      for (int slab = 0; slab < kSlabs; ++slab) {
        Operand a;
        const char* of_slab = here_weights + (i * kSlabs + slab) * (Tile::kPanelBytes / kSlabs);
        Op::load(
            a,
            [&](int j) {
              return *reinterpret_cast<const uint4*>(of_slab + Op::group_of_lane(Op::turned(j, t), 0) * (kPanel * 4));
            },
            t);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            const char* x = here + i * Tile::kRowBytes + 8 * j * kStageK + of_x[2 * slab + step];
            const uint2 words = *reinterpret_cast<const uint2*>(x);
            const uint32_t b[2] = {words.x, words.y};
            for (int tile = 0; tile < 2; ++tile) Op::multiply(sum[tile][j], a[step][tile], b);
          }
        }
      }
      if constexpr (Op::kInBlocks) {
        if ((box + i) % 2 != 0 || box + i + 1 == ring.boxes) add_block(total, sum, scales);
      }
    }
    wait_for_others();  // the stage is free
    const int next = box + kStages * Tile::kBoxes;
    if (warp_n == 0 && next < ring.boxes) ring.fill(rows, stage, next, lane);
    if (++stage == kStages) stage = 0, ++round;
  }
  using OfBlock = MatmulTile<Tile::kRows, Tile::kWarpsN, kSplits>;
  const int64_t first_column = block_column + warp_n * kWarpColumns;
  if constexpr (Op::kInBlocks) {
    write_sums<Op, OfBlock>(p, row_scale, total, 0, first_column);
  } else {
    write_sums<Op, OfBlock>(p, row_scale, sum, 0, first_column);
  }
}

// row_scale: [p.m], may be null.
template <class Op, int kRows, int kWarpsN>
void run_few_rows(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  using Tile = FewRowsTile<kRows, kWarpsN, Op::kBytes * kSlabs / 2>;
  constexpr int64_t kBytes = sizeof(typename Op::X);
  const CUtensorMap rows = byte_matrix_map(p.x.data, p.m, p.k * kBytes, p.x.row_stride * kBytes, kRows);
  launch(few_rows_kernel<Op, Tile>, dim3(ceil_div(p.n, kWarpsN * kWarpColumns)), dim3(Tile::kWarps * kWarp),
         Tile::shared_bytes(), stream, p, row_scale, rows);
}

// The widest blocks of which 0.45 of the multiprocessors or more have one: fewer would not keep up with L2.
template <class Op, int kRows>
void run_few_rows(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  const int64_t columns = 20 * p.n / (9 * multiprocessors());
  if (columns >= 4 * kWarpColumns) return run_few_rows<Op, kRows, 4>(p, row_scale, stream);
  if (columns >= 2 * kWarpColumns) return run_few_rows<Op, kRows, 2>(p, row_scale, stream);
  run_few_rows<Op, kRows, 1>(p, row_scale, stream);
}

}  // namespace pybatch::cuda
