// The matmul of many rows. A block computes tiles of 64 or 128 columns and some rows of x. Weights are the rows of the
// product, as in ../matmul_kernel.cuh: they are copied to shared memory as packed, and from there to the registers of
// the warp that multiplies their panel. The rows of x stay in shared memory, where wgmma reads them. One warp copies,
// one or two warpgroups multiply; barriers tell when a stage is full and when it is empty.
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/matmul_config.cuh"
#include "cuda/matmul_epilogue.cuh"
#include "cuda/sm90/matmul_config.cuh"
#include "cuda/sm90/matmul_ops.cuh"
#include "cuda/sm90/pipeline.cuh"
#include "cuda/sm90/tensor_map.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace pybatch::cuda {

struct Pipeline {
  char* stages;      // [stages], each the rows of x and the weights
  uint64_t* filled;  // [stages]
  uint64_t* emptied;
  uint32_t cluster, rank;  // blocks of the cluster, and which this is
};

// The blocks of a cluster have neighbouring tiles of the same rows. Tiles that run at one time share kRowTilesAside
// tiles of rows, and few columns.
struct Place {
  int64_t row, panel;  // the first ones
};
struct Tiles {
  uint32_t rows, columns;  // those of a cluster as one
};
template <class Tile>
__host__ __device__ __forceinline__ Tiles tiles_of(const MatmulParams& p, uint32_t cluster) {
  const auto columns = static_cast<uint32_t>(ceil_div(p.n, Tile::kColumns));
  return {static_cast<uint32_t>(ceil_div(p.m, Tile::kRows)), (columns + cluster - 1) / cluster};
}
template <class Tile>
__device__ __forceinline__ Place place_of_tile(const MatmulParams& p, uint32_t tile, const Pipeline& pipeline) {
  const auto [rows, columns] = tiles_of<Tile>(p, pipeline.cluster);
  const uint32_t group = tile / (kRowTilesAside * columns), within = tile % (kRowTilesAside * columns);
  const uint32_t left = rows - group * kRowTilesAside, aside = left < kRowTilesAside ? left : kRowTilesAside;
  return {int64_t{group * kRowTilesAside + within % aside} * Tile::kRows,
          int64_t{within / aside * pipeline.cluster + pipeline.rank} * Tile::kPanels};
}

// One warp: fills the stages in turn, as they are emptied.
template <class Op, class Tile>
__device__ __forceinline__ void copy_tile(const MatmulParams& p, const CUtensorMap& rows, const Pipeline& pipeline,
                                          Turn<Tile::kStages>& turn, Place place) {
  const int lane = threadIdx.x % kWarp;
  const int64_t panels = ceil_div(p.n, kPanel), bytes_of_panel = panel_bytes(p.k, Op::kWeightBytes, Op::kInBlocks);
  // A lane a panel. Beyond the last panel it is copied again.
  const int64_t panel = place.panel + lane < panels ? place.panel + lane : panels - 1;
  const char* weights = static_cast<const char*>(p.weight) + panel * bytes_of_panel;
  int64_t left = ceil_div(p.k * Op::kWeightBytes, 4) * (kPanel * 4);  // bytes of a panel
  for (int32_t x = 0; left > 0; x += kStageK) {
    if (turn.round > 0) wait_for(pipeline.emptied + turn.stage, turn.round - 1);
    char* to = pipeline.stages + turn.stage * Tile::kStageBytes;
    char* to_weights = to + Tile::kRowBytes;
    const uint32_t bytes = left < Tile::kPanelBytes ? static_cast<uint32_t>(left) : Tile::kPanelBytes;
    if (bytes < Tile::kPanelBytes) {  // beyond K
      for (uint32_t at = bytes + lane * 16; at < Tile::kPanelBytes; at += kWarp * 16) {
        for (int i = 0; i < Tile::kPanels; ++i) {
          *reinterpret_cast<uint4*>(to_weights + i * Tile::kPanelBytes + at) = uint4{};
        }
      }
      fence_proxy_async();  // a later round copies over the zeros
    }
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive_expect_tx(pipeline.filled + turn.stage, Tile::kRowBytes + Tile::kPanels * bytes);
      if (pipeline.cluster == 1) {
        cp_async_bulk_tensor_2d(to, rows, x, static_cast<int32_t>(place.row), pipeline.filled + turn.stage);
      } else {
        const uint32_t part = pipeline.rank * (Tile::kRows / Tile::kCluster);
        cp_async_bulk_tensor_2d_multicast(to + part * kStageK, rows, x, static_cast<int32_t>(place.row + part),
                                          pipeline.filled + turn.stage, (1 << Tile::kCluster) - 1);
      }
    }
    __syncwarp();
    if (lane < Tile::kPanels) {
      cp_async_bulk(to_weights + lane * Tile::kPanelBytes, weights, bytes, pipeline.filled + turn.stage);
    }
    weights += Tile::kPanelBytes;
    if (Op::kInBlocks && x / kStageK % 2 != 0) weights += kBlockBytes - kBlockCodes;
    left -= Tile::kPanelBytes;
    turn.advance();
  }
}

// sum = the products of the warpgroup's 64 columns and all rows of the tile, over `count` stages. It begins as zeros,
// as that of mma.sync does.
template <class Op, class Tile>
__device__ __forceinline__ void multiply_stages(typename Op::Sum (&sum)[Tile::kRows / 2], const Pipeline& pipeline,
                                                Turn<Tile::kStages>& turn, uint32_t count, int panel) {
#pragma unroll
  for (int i = 0; i < Tile::kRows / 2; ++i) sum[i] = 0;
  constexpr int kSteps = kStageK / 32;
  const uint32_t lane = threadIdx.x % kWarp;
  uint32_t a[kSteps][4];
  auto free_stage_before = [&](uint32_t stage) {
    __syncwarp();
    uint64_t* emptied = pipeline.emptied + (stage == 0 ? Tile::kStages : stage) - 1;
    if constexpr (Tile::kCluster == 1) {
      if (lane == 0) mbarrier_arrive(emptied);
    } else if (lane < pipeline.cluster) {
      mbarrier_arrive_at(emptied, lane);  // others copy to this block, too
    }
  };
  for (uint32_t i = 0; i < count; ++i) {
    wait_for(pipeline.filled + turn.stage, turn.round);
    const char* rows = pipeline.stages + turn.stage * Tile::kStageBytes;
    const char* weights = rows + Tile::kRowBytes + panel * Tile::kPanelBytes;
    // Half a stage is multiplied while the weights of the next half are loaded.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = half * kSteps / 2; step < (half + 1) * kSteps / 2; ++step) {
        Op::load(a[step], weights, step, static_cast<int>(lane));
      }
      wgmma_fence();
#pragma unroll
      for (int step = half * kSteps / 2; step < (half + 1) * kSteps / 2; ++step) {
        Op::template multiply<Tile::kRows>(sum, a[step], wgmma_descriptor(rows + step * 32));
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (half == 0 && i > 0) free_stage_before(turn.stage);
    }
    turn.advance();
  }
  wgmma_wait<0>();
  free_stage_before(turn.stage);
}

// The same over stages from `begin` to `end`, each block of K times its scale. panel_scales: those of the warp's
// columns.
template <class Op, class Tile>
__device__ __forceinline__ void multiply_blocks(float (&sum)[Tile::kRows / 2], const Pipeline& pipeline,
                                                Turn<Tile::kStages>& turn, uint32_t begin, uint32_t end, int panel,
                                                const char* panel_scales) {
  const uint32_t g = threadIdx.x % kWarp / 4;
#pragma unroll
  for (int i = 0; i < Tile::kRows / 2; ++i) sum[i] = 0;
  for (uint32_t stage = begin; stage < end; stage += 2) {
    const auto* scales = reinterpret_cast<const float*>(panel_scales + stage / 2 * kBlockBytes) + g;
    const float scale[2] = {scales[0], scales[8]};
    float block[Tile::kRows / 2];
    multiply_stages<Op, Tile>(block, pipeline, turn, end - stage < 2 ? 1 : 2, panel);
#pragma unroll
    for (int i = 0; i < Tile::kRows / 2; ++i) sum[i] = fmaf(block[i], scale[i / 2 % 2], sum[i]);
  }
}

// The same over all of K, in the parts of matmul_config.cuh if their order matters.
template <class Op, class Tile>
__device__ __forceinline__ void multiply_tile(typename Op::Sum (&sum)[Tile::kRows / 2], const Pipeline& pipeline,
                                              Turn<Tile::kStages>& turn, uint32_t stages, int panel,
                                              const char* panel_scales) {
  if constexpr (Op::kInParts) {
    typename Op::Sum part[Tile::kRows / 2];
#pragma unroll
    for (int i = 0; i < Tile::kRows / 2; ++i) sum[i] = 0;
    const uint32_t split = stages_of_part<Op::kInBlocks>(stages);
    for (uint32_t begin = 0; begin < stages; begin += split) {
      const uint32_t end = stages - begin < split ? stages : begin + split;
      if constexpr (Op::kInBlocks) {
        multiply_blocks<Op, Tile>(part, pipeline, turn, begin, end, panel, panel_scales);
      } else {
        multiply_stages<Op, Tile>(part, pipeline, turn, end - begin, panel);
      }
#pragma unroll
      for (int i = 0; i < Tile::kRows / 2; ++i) sum[i] += part[i];
    }
  } else {
    multiply_stages<Op, Tile>(sum, pipeline, turn, stages, panel);
  }
}

// Where a sum lies in shared memory: runs of eight columns are loaded without meeting in a bank.
template <class Tile>
__device__ __forceinline__ int place_of_sum(int row, int column) {
  return row * Tile::kPitch + (column ^ column / 32 * 4);
}

// A run of columns.
struct RunScaling {
  float scale[kRun], bias[kRun];

  __device__ __forceinline__ void load(const float* of_columns) {  // [2][64]
#pragma unroll
    for (int i = 0; i < kRun; ++i) scale[i] = of_columns[i], bias[i] = of_columns[64 + i];
  }
  // The products of a row, from its sums in shared memory.
  template <class Tile, class Sum>
  __device__ __forceinline__ void apply(const Sum* sums, int row, int column, const float* row_scale,
                                        float (&v)[kRun]) const {
#pragma unroll
    for (int i = 0; i < kRun; i += 4) {
      const uint4 raw = *reinterpret_cast<const uint4*>(sums + place_of_sum<Tile>(row, column + i));
      const auto* four = reinterpret_cast<const Sum*>(&raw);
#pragma unroll
      for (int j = 0; j < 4; ++j) v[i + j] = ColumnScaling{scale[i + j], bias[i + j], row_scale}.apply(four[j], 0);
    }
  }
};

// Sums go through shared memory, so that a thread gets eight neighbouring columns of some rows; the warpgroup calls it.
template <class Op, class Tile, class T, bool kGated>
__device__ __forceinline__ void write_rows(const MatmulParams& p, const float* row_scale, typename Op::Sum* sums,
                                           const typename Op::Sum (&sum)[Tile::kRows / 2], int64_t first_row,
                                           int64_t first_column, int thread, int barrier) {
  constexpr int kTurnRows = Tile::kTurnRows, kRuns = kGated ? 4 : 8, kAtOnce = kTurnRows * kRuns / kWarpgroup;
  const int panel = thread / kWarp, lane = thread % kWarp, g = lane / 4, t = lane % 4, run = thread % kRuns;
  const int64_t rows = p.m - first_row < Tile::kRows ? p.m - first_row : Tile::kRows;

  // Where gate and up are multiplied, two of four runs are gates.
  const int within = kGated ? run / 2 * 2 * kPanel + run % 2 * kRun : run * kRun;
  const int64_t column =
      kGated ? (first_column + within) / (2 * kPanel) * kPanel + run % 2 * kRun : first_column + within;
  const int64_t n = p.width - column;
  const float* of_columns = reinterpret_cast<const float*>(sums + kTurnRows * Tile::kPitch);
  RunScaling of_run;
  named_barrier_sync(barrier, kWarpgroup);
  if constexpr (!kGated) of_run.load(of_columns + within);

  T* out = static_cast<T*>(p.out.data) + first_row * p.out.row_stride + column;
  const float* of_rows = row_scale != nullptr ? row_scale + first_row : nullptr;
#pragma unroll 1
  for (int first = 0; first < rows; first += kTurnRows) {
#pragma unroll
    for (int turn = 0; turn < ceil_div(Tile::kRows, kTurnRows); ++turn) {
      if (turn * kTurnRows != first) continue;  // registers have no index at run time
#pragma unroll
      for (int i = 0; i < kTurnRows / 2 && turn * kTurnRows / 2 + i < Tile::kRows / 2; ++i) {
        const int row = i / 4 * 8 + 2 * t + i % 2, of_panel = g + i / 2 % 2 * 8;
        sums[place_of_sum<Tile>(row, panel * kPanel + of_panel)] = sum[turn * kTurnRows / 2 + i];
      }
    }
    // Loaded while the others come.
    float residual[kAtOnce][kRun], of_row[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = first + thread / kRuns + i * (kTurnRows / kAtOnce);
      if (row >= rows || n <= 0) continue;
      if (!Op::kInParts) of_row[i] = of_rows[row];
      if (!kGated && p.epilogue == Epilogue::add) load_run(out + row * p.out.row_stride, n, residual[i]);
    }
    named_barrier_sync(barrier, kWarpgroup);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int of_turn = thread / kRuns + i * (kTurnRows / kAtOnce), row = first + of_turn;
      if (row >= rows || n <= 0) continue;
      const float* scale = Op::kInParts ? nullptr : of_row + i;
      float v[kRun];
      if constexpr (kGated) of_run.load(of_columns + within);
      of_run.template apply<Tile>(sums, of_turn, within, scale, v);
      if constexpr (kGated) {
        float up[kRun];
        of_run.load(of_columns + within + kPanel);
        of_run.template apply<Tile>(sums, of_turn, within + kPanel, scale, up);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          v[j] = activated(p.epilogue, to_float(from_float<T>(v[j]))) * to_float(from_float<T>(up[j]));
        }
      } else if (p.epilogue == Epilogue::add) {
#pragma unroll
        for (int j = 0; j < kRun; ++j) v[j] = to_float(from_float<T>(v[j])) + residual[i][j];
      }
      store_run(out + row * p.out.row_stride, n, v);
    }
    named_barrier_sync(barrier, kWarpgroup);
  }
}

template <class Op, class Tile>
__device__ __forceinline__ void write_tile(const MatmulParams& p, const float* row_scale, char* shared,
                                           const typename Op::Sum (&sum)[Tile::kRows / 2], Place place) {
  const int consumer = opaque(static_cast<int>(threadIdx.x) - kWarpgroup);  // registers are full till here
  const int group = consumer / kWarpgroup, thread = consumer % kWarpgroup;
  auto* sums = reinterpret_cast<typename Op::Sum*>(shared + group * Tile::kGroupSumBytes);
  float* of_columns = reinterpret_cast<float*>(sums + Tile::kTurnRows * Tile::kPitch);  // [2][64]
  const int64_t first_column = place.panel * kPanel + group * 64;
  if (thread < 64) {
    const int64_t column = first_column + thread < p.n ? first_column + thread : p.n - 1;
    const ColumnScaling of_column = column_scaling(p, nullptr, column);
    of_columns[thread] = of_column.scale;
    of_columns[64 + thread] = of_column.bias;
  }
  auto write = [&](auto* type, auto gated) {
    using T = std::remove_pointer_t<decltype(type)>;
    write_rows<Op, Tile, T, gated.value>(p, row_scale, sums, sum, place.row, first_column, thread, 1 + group);
  };
  auto write_as = [&](auto* type) {
    is_gated(p.epilogue) ? write(type, std::true_type()) : write(type, std::false_type());
  };
  switch (p.out.dtype) {
    case DType::f32: return write_as(static_cast<float*>(nullptr));
    case DType::f16: return write_as(static_cast<f16*>(nullptr));
    default: return write_as(static_cast<bf16*>(nullptr));
  }
}

template <class Op, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    wgmma_kernel(MatmulParams p, const float* row_scale, const __grid_constant__ CUtensorMap rows) {
  begin_kernel();
  char* shared = dynamic_shared<char>();
  auto* barriers = reinterpret_cast<uint64_t*>(shared + Tile::stage_bytes() + Tile::kSumBytes);
  const bool alone = Tile::kCluster == 1;
  const Pipeline pipeline = {shared, barriers, barriers + Tile::kStages, alone ? 1 : cluster_size(),
                             alone ? 0 : cluster_rank()};
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(pipeline.filled + i, 1);
      mbarrier_init(pipeline.emptied + i, pipeline.cluster * Tile::kConsumers * kWarpgroup / kWarp);
    }
    fence_proxy_async();
    if (!alone) fence_mbarrier_init();
  }
  __syncthreads();
  if (!alone) cluster_sync();
  const auto [tile_rows, tile_columns] = tiles_of<Tile>(p, pipeline.cluster);
  const uint32_t tiles = tile_rows * tile_columns;
  const uint32_t first = blockIdx.x / pipeline.cluster, aside = gridDim.x / pipeline.cluster;
  Turn<Tile::kStages> turn;

  if (threadIdx.x < kWarpgroup) {
    if constexpr (Tile::kConsumers == 2) setmaxnreg_dec<kCopyRegisters>();
    if (warp != 0) return;
    for (uint32_t tile = first; tile < tiles; tile += aside) {
      copy_tile<Op, Tile>(p, rows, pipeline, turn, place_of_tile<Tile>(p, tile, pipeline));
    }
    if (!alone) cluster_sync();
    return;
  }
  if constexpr (Tile::kConsumers == 2) setmaxnreg_inc<kMultiplyRegisters>();
  const int panel = warp - kWarpgroup / kWarp;
  const auto stages = static_cast<uint32_t>(ceil_div(p.k * static_cast<int64_t>(sizeof(typename Op::X)), kStageK));
  for (uint32_t tile = first; tile < tiles; tile += aside) {
    typename Op::Sum sum[Tile::kRows / 2];
    const char* panel_scales = nullptr;
    if constexpr (Op::kInBlocks) {
      const int64_t own = place_of_tile<Tile>(p, tile, pipeline).panel + panel, last = ceil_div(p.n, kPanel) - 1;
      const int64_t column = (own < last ? own : last) * kPanel;
      panel_scales = static_cast<const char*>(p.weight) + block_scale_at(column, 0, p.k);
    }
    multiply_tile<Op, Tile>(sum, pipeline, turn, stages, panel, panel_scales);
    write_tile<Op, Tile>(p, row_scale, shared + Tile::stage_bytes(), sum, place_of_tile<Tile>(p, tile, pipeline));
  }
  if (!alone) cluster_sync();  // till then others may arrive at this block's barriers
}

template <class Op, class Tile>
void run_wgmma(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  const int cluster = Tile::kCluster == 1 ? 1 : cluster_blocks(Tile::kCluster);
  const auto [tile_rows, tile_columns] = tiles_of<Tile>(p, cluster);
  const uint32_t tiles = tile_rows * tile_columns, most = Tile::kBlocks * multiprocessors() / cluster;
  const dim3 grid(cluster * (tiles < most ? tiles : most));
  constexpr int64_t kBytes = sizeof(typename Op::X);
  const CUtensorMap rows = byte_matrix_map(p.x.data, p.m, p.k * kBytes, p.x.row_stride * kBytes, Tile::kRows / cluster);
  launch_clusters(cluster, wgmma_kernel<Op, Tile>, grid, dim3(Tile::kThreads), Tile::shared_bytes(), stream, p,
                  row_scale, rows);
}

// The tile that takes the least time; the first of those that take the same. row_scale: [p.m], may be null.
template <class Op, class Tile, class... Others>
void run_best_wgmma(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  if constexpr (sizeof...(Others) > 0) {
    const int64_t aside = multiprocessors();
    if (bytes_in_turn<Tile>(p.m, p.n, aside) > std::min({bytes_in_turn<Others>(p.m, p.n, aside)...})) {
      return run_best_wgmma<Op, Others...>(p, row_scale, stream);
    }
  }
  run_wgmma<Op, Tile>(p, row_scale, stream);
}
template <class Op>
void wgmma_matmul(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  constexpr int kBytes = Op::kPanelBytes;
  run_best_wgmma<Op, WgmmaTile<Op::kRows, 2, kBytes>, WgmmaTile<128, 2, kBytes>, WgmmaTile<128, 1, kBytes>,
                 WgmmaTile<64, 1, kBytes, Op::kInBlocks ? 1 : 2>>(p, row_scale, stream);
}

}  // namespace pybatch::cuda
