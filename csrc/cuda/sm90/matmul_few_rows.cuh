// The matmul of at most 32 rows: as in ../matmul_kernel.cuh a block has 32 columns and each of its warps a part of K,
// but a warp's stages are filled by bulk copies that one lane starts, and weights lie in them as packed.
#pragma once

#include "cuda/matmul_kernel.cuh"
#include "cuda/sm90/matmul_config.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/tensor_map.cuh"

namespace pybatch::cuda {

// A warp's ring of stages.
template <class Op, class Tile>
struct Ring {
  char* stages;      // [kStages], each the rows of x and two panels
  uint64_t* filled;  // [kStages]
  const char* panels[2];
  int64_t panel_bytes;  // of K

  // All lanes call it, once the stage is free: with what lies `stage_of_k` stages into K.
  __device__ __forceinline__ void fill(const CUtensorMap& rows, int stage, int64_t stage_of_k, int lane) const {
    char* to = stages + stage * Tile::kStageBytes;
    char* to_weights = to + Tile::kRowBytes;
    const int64_t left = panel_bytes - stage_of_k * Tile::kPanelBytes;
    const int bytes = left < Tile::kPanelBytes ? static_cast<int>(left) : Tile::kPanelBytes;
    if (bytes < Tile::kPanelBytes) {  // beyond K
      for (int at = bytes + lane * 16; at < Tile::kPanelBytes; at += kWarp * 16) {
        for (int i = 0; i < 2; ++i) *reinterpret_cast<uint4*>(to_weights + i * Tile::kPanelBytes + at) = uint4{};
      }
      __syncwarp();
    }
    if (lane != 0) return;
    mbarrier_arrive_expect_tx(filled + stage, Tile::kRowBytes + 2 * bytes);
    for (int i = 0; i < 2; ++i) {
      cp_async_bulk(to_weights + i * Tile::kPanelBytes, panels[i] + stage_of_k * Tile::kPanelBytes, bytes,
                    filled + stage);
    }
    cp_async_bulk_tensor_2d(to, rows, static_cast<int32_t>(stage_of_k * kStageK), 0, filled + stage);
  }
};

template <class Op, class Tile>
__global__ void __launch_bounds__(kSplits* kWarp, 2)
    few_rows_kernel(MatmulParams p, const float* row_scale, const __grid_constant__ CUtensorMap rows) {
  using Sum = typename Op::Sum;
  constexpr int kStages = Tile::kStages, kTokenTiles = Tile::kRows / 8;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) * kWarpColumns, first_panel = first_column / kPanel;
  const int64_t last_panel = ceil_div(p.n, kPanel) - 1, panel_pitch = Op::panel_bytes(p.k);
  const char* weights = static_cast<const char*>(p.weight);
  auto* barriers = reinterpret_cast<uint64_t*>(dynamic_shared<char>() + kSplits * kStages * Tile::kStageBytes);
  // Beyond the last panel it is copied again.
  const Ring<Op, Tile> ring = {dynamic_shared<char>() + warp * kStages * Tile::kStageBytes,
                               barriers + warp * kStages,
                               {weights + first_panel * panel_pitch,
                                weights + (first_panel < last_panel ? first_panel + 1 : last_panel) * panel_pitch},
                               ceil_div(p.k * Op::kWeightBytes, 4) * (kPanel * 4)};

  const int all_stages = static_cast<int>(ceil_div(p.k * static_cast<int64_t>(sizeof(typename Op::X)), kStageK));
  const int split = (all_stages + kSplits - 1) / kSplits, begin = warp * split;
  const int count = all_stages - begin < split ? all_stages - begin : split;  // may be negative
  if (lane == 0) {
    for (int i = 0; i < kStages; ++i) mbarrier_init(ring.filled + i, 1);
    fence_proxy_async();
  }
  __syncwarp();
  for (int i = 0; i < kStages && i < count; ++i) ring.fill(rows, i, begin + i, lane);

  // Where a lane's x and weights of a stage are. A step's sixteen bytes lie as the swizzle has them.
  int of_x[4], of_weights = g / 4 * Tile::kPanelBytes + g % 4 * 16;
#pragma unroll
  for (int step = 0; step < 4; ++step) of_x[step] = g * kStageK + ((2 * step + t / 2) ^ g) * 16 + t % 2 * 8;
  Sum sum[2][kTokenTiles][4] = {};
  int stage = 0;
  uint32_t round = 0;
  for (int i = 0; i < count; ++i) {
    while (!mbarrier_try_wait_parity(ring.filled + stage, round % 2)) {
    }
    const char* here = ring.stages + stage * Tile::kStageBytes;
    const char* here_weights = here + Tile::kRowBytes + of_weights;
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      Operand a;
      Op::load(a, [&](int j) {
        const int group = slab * Tile::kPanelBytes / (kPanel * 4 * kSlabs) + Op::group_of_lane(j, t);
        return *reinterpret_cast<const uint4*>(here_weights + group * (kPanel * 4));
      });
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const uint2 words = *reinterpret_cast<const uint2*>(here + 8 * j * kStageK + of_x[2 * slab + step]);
          const uint32_t b[2] = {words.x, words.y};
          for (int tile = 0; tile < 2; ++tile) Op::multiply(sum[tile][j], a[step][tile], b);
        }
      }
    }
    __syncwarp();  // the stage is free
    if (i + kStages < count) ring.fill(rows, stage, begin + i + kStages, lane);
    if (++stage == kStages) stage = 0, ++round;
  }
  write_sums<Op, FewRows<Tile::kRows>>(p, row_scale, sum, 0, first_column);
}

// row_scale: [p.m], may be null.
template <class Op, int kRows>
void run_few_rows(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  using Tile = FewRowsTile<kRows, Op::kBytes * kSlabs / 2>;
  constexpr int64_t kBytes = sizeof(typename Op::X);
  const CUtensorMap rows = byte_matrix_map(p.x.data, p.m, p.k * kBytes, p.x.row_stride * kBytes, kRows);
  launch(few_rows_kernel<Op, Tile>, dim3(ceil_div(p.n, kWarpColumns)), dim3(kSplits * kWarp), Tile::shared_bytes(),
         stream, p, row_scale, rows);
}

}  // namespace pybatch::cuda
