// The tensor-core matmul, for every kind of weight (matmul_ops.cuh) and every number of rows: one family of
// instructions and one order of the sum over K, kSplits parts that are added in ascending order, so no result
// depends on the tile.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/matmul_epilogue.cuh"
#include "cuda/matmul_ops.cuh"
#include "cuda/matmul_rows.cuh"

namespace pybatch::cuda {

constexpr int kPartPitch = kWarpColumns + 4;

// Where a step of a row of x lies in shared memory: two rows of four have their steps in turned order, so that lanes
// which load eight bytes of four rows meet in no bank.
__device__ __forceinline__ int place_of_step(int row, int step) { return row * kSlabBytes + (step ^ row / 2 % 2) * 32; }

// Of weights in blocks: the scales of a lane's columns of a block, [tile][half]. panel: the one that has them.
__device__ __forceinline__ float4 load_block_scales(const char* panel, int64_t block, int g) {
  return reinterpret_cast<const float4*>(panel + block * kBlockBytes + kBlockCodes)[g % 4];
}
// total += sum * scale, and sum = 0.
template <int kTokenTiles>
__device__ __forceinline__ void add_block(float (&total)[2][kTokenTiles][4], float (&sum)[2][kTokenTiles][4],
                                          float4 scales) {
  const float scale[2][2] = {{scales.x, scales.y}, {scales.z, scales.w}};
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        total[tile][j][e] = fmaf(sum[tile][j][e], scale[tile][e / 2], total[tile][j][e]), sum[tile][j][e] = 0;
      }
    }
  }
}

// Starts the copy of a stage's slabs of the block's rows of x: sixteen bytes a thread and turn.
template <class Op, class Tile>
__device__ __forceinline__ void copy_x(char* to, const MatmulParams& p, int64_t first_row, int64_t stage, int thread,
                                       int threads) {
  using X = typename Op::X;
  constexpr int kEach = 16 / sizeof(X), kSlab = kSlabBytes / sizeof(X);
  for (int i = thread; i < kSlabs * Tile::kRows * 4; i += threads) {
    const int part = i % 4, slab = i / 4 % kSlabs, row = i / 4 / kSlabs;
    const int64_t k = (stage * kSlabs + slab) * kSlab + part * kEach, left = p.k - k;
    const bool valid = first_row + row < p.m && left > 0;
    const X* from = static_cast<const X*>(p.x.data) + (valid ? x_row(p, first_row + row) * p.x.row_stride + k : 0);
    X* at = reinterpret_cast<X*>(to + place_of_step(slab * Tile::kRows + row, part / 2) + part % 2 * 16);
    if (!valid || (left >= kEach && reinterpret_cast<uintptr_t>(from) % 16 == 0)) {
      cp_async_16(at, from, valid);
    } else {
      for (int j = 0; j < kEach; ++j) at[j] = j < left ? from[j] : X(0);
    }
  }
}

// From the sums of all warps to p.out: through shared memory, to add up the parts of K and give a warp's lanes
// neighbouring columns.
template <class Op, class Tile>
__device__ __forceinline__ void write_sums(const MatmulParams& p, const float* row_scale,
                                           const typename Op::Sum (&sum)[2][Tile::kRows / 8][4], int64_t first_row,
                                           int64_t first_column) {
  using Sum = typename Op::Sum;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  __syncthreads();
  Sum* parts = dynamic_shared<Sum>();
  constexpr int kPart = Tile::kRows * kPartPitch;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int j = 0; j < Tile::kRows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = 8 * j + 2 * t + e % 2, column = Op::column(tile, e / 2, g);
        parts[warp * kPart + row * kPartPitch + column] = sum[tile][j][e];
      }
    }
  }
  __syncthreads();
  const int64_t column = first_column + lane;
  if (column >= p.n) return;
  const ColumnScaling of_column = column_scaling(p, row_scale, column);
  const int warp_n = warp % Tile::kWarpsN, warp_k = warp / Tile::kWarpsN;
  for (int row = warp_k; row < Tile::kRows && first_row + row < p.m; row += Tile::kWarpsK) {
    const Sum* part = parts + warp_n * kPart + row * kPartPitch + lane;
    Sum x = 0;
#pragma unroll
    for (int i = 0; i < Tile::kWarpsK; ++i) x += part[i * Tile::kWarpsN * kPart];
    write_product(p, first_row + row, column, of_column.apply(x, x_row(p, first_row + row)));
  }
}

template <class Op, class Tile>
__global__ void __launch_bounds__(Tile::kWarps* kWarp, 2) matmul_kernel(MatmulParams p, const float* row_scale) {
  begin_kernel();
  using Sum = typename Op::Sum;
  constexpr int kStages = Tile::stages(Op::kBytes), kTokenTiles = Tile::kRows / 8;
  constexpr size_t kStageBytes = Tile::stage_bytes(Op::kBytes);
  constexpr int kStageK = kSlabs * kSlabBytes / sizeof(typename Op::X);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int warp_n = warp % Tile::kWarpsN, warp_k = warp / Tile::kWarpsN;
  const int64_t first_row = take_tile(p, Tile::kRows);
  if (first_row >= p.m) return;
  const int64_t first_column = (static_cast<int64_t>(blockIdx.y) * Tile::kWarpsN + warp_n) * kWarpColumns;

  // Warps that share rows of x wait for each other; a warp with its own part of K does not wait.
  constexpr bool kAlone = Tile::kWarpsN == 1;
  const int thread = kAlone ? lane : static_cast<int>(threadIdx.x);
  char* shared = dynamic_shared<char>() + warp_k * kStages * kStageBytes;
  auto wait_for_others = [] { kAlone ? __syncwarp() : __syncthreads(); };

  const int64_t panels = ceil_div(p.n, kPanel) - first_column / kPanel;
  const int64_t panel_bytes = Op::bytes_of_panel(p.k);
  const WarpWeights weights = {
      static_cast<const char*>(p.weight) + (panels > 0 ? first_column / kPanel * panel_bytes : 0), p.k, panels};
  auto copy_stage = [&](int64_t stage) {
    char* to = shared + stage % kStages * kStageBytes;
    copy_x<Op, Tile>(to, p, first_row, stage, thread, Tile::kWarpsN * kWarp);
    to += Tile::x_bytes() + warp_n * kSlabs * Op::kBytes;
    for (int slab = 0; slab < kSlabs; ++slab) {
      Op::copy(to + slab * Op::kBytes, weights, stage * kSlabs + slab, lane);
    }
  };

  Sum sum[2][kTokenTiles][4] = {}, total[2][kTokenTiles][4] = {};
  static_assert(kAlone || !Op::kInBlocks);  // a block's sum, a part's and the total would not fit registers
  const char* of_lane = weights.data + (g / 4 < panels ? g / 4 * panel_bytes : 0);  // its columns' panel
  [[maybe_unused]] float4 scales{};
  const int64_t all_stages = ceil_div(p.k, kStageK), split = stages_of_part<Op::kInBlocks>(all_stages);
  const int64_t begin = warp_k * split < all_stages ? warp_k * split : all_stages;
  const int64_t end = kAlone ? (begin + split < all_stages ? begin + split : all_stages) : all_stages;
  for (int i = 0; i < kStages - 1; ++i) {
    if (begin + i < end) copy_stage(begin + i);
    cp_async_commit();
  }
  for (int64_t stage = begin; stage < end; ++stage) {
    cp_async_wait<kStages - 2>();
    wait_for_others();
    if (stage + kStages - 1 < end) copy_stage(stage + kStages - 1);
    cp_async_commit();

    if constexpr (Op::kInBlocks) {
      if (stage % 2 == 0) scales = load_block_scales(of_lane, stage / 2, g);
    }
    const char* here = shared + stage % kStages * kStageBytes;
    const char* here_weights = here + Tile::x_bytes() + warp_n * kSlabs * Op::kBytes;
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      Operand a;
      Op::load(a, [&](int i) { return Op::group(here_weights + slab * Op::kBytes, i, lane); }, t);
#pragma unroll
      for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          const char* x = here + place_of_step(slab * Tile::kRows + 8 * j + g, step);
          const uint2 words = reinterpret_cast<const uint2*>(x)[t];
          const uint32_t b[2] = {words.x, words.y};
          for (int tile = 0; tile < 2; ++tile) Op::multiply(sum[tile][j], a[step][tile], b);
        }
      }
    }
    if constexpr (Op::kInBlocks) {
      if (stage % 2 != 0 || stage + 1 == end) add_block(total, sum, scales);
    }
    if (!kAlone && ((stage + 1) % split == 0 || stage + 1 == end)) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        for (int j = 0; j < kTokenTiles; ++j) {
          for (int e = 0; e < 4; ++e) total[tile][j][e] += sum[tile][j][e], sum[tile][j][e] = 0;
        }
      }
    }
  }

  cp_async_wait<0>();
  if constexpr (kAlone && !Op::kInBlocks) {
    write_sums<Op, Tile>(p, row_scale, sum, first_row, first_column);
  } else {
    write_sums<Op, Tile>(p, row_scale, total, first_row, first_column);
  }
}

template <class Op, class Tile>
void run_matmul(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  const dim3 grid(row_tiles(p, Tile::kRows), ceil_div(p.n, Tile::kWarpsN * kWarpColumns));
  const size_t parts = Tile::kWarps * Tile::kRows * kPartPitch * sizeof(typename Op::Sum);
  const size_t stages = Tile::kWarpsK * Tile::stages(Op::kBytes) * Tile::stage_bytes(Op::kBytes);
  launch(matmul_kernel<Op, Tile>, grid, dim3(Tile::kWarps * kWarp), parts > stages ? parts : stages, stream, p,
         row_scale);
}

// row_scale: [p.x_rows()], may be null.
template <class Op>
void matmul(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  const int64_t rows = rows_together(p);
  if constexpr (!Op::kInBlocks) {
    const int64_t blocks = ceil_div(p.m, ManyRows::kRows) * ceil_div(p.n, ManyRows::kWarpsN * kWarpColumns);
    if (rows > 32 && blocks >= multiprocessors()) return run_matmul<Op, ManyRows>(p, row_scale, stream);
  }
  if (rows > 32) return run_matmul<Op, FewRows<64>>(p, row_scale, stream);
  if (rows > 16) return run_matmul<Op, FewRows<32>>(p, row_scale, stream);
  if (rows > 8) return run_matmul<Op, FewRows<16>>(p, row_scale, stream);
  run_matmul<Op, FewRows<8>>(p, row_scale, stream);
}

}  // namespace pybatch::cuda
