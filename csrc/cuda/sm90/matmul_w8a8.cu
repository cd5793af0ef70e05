// A block computes 128 columns of some rows of x. Weights are the rows of the product, as in matmul_kernel.cuh: they
// are copied to shared memory as packed, and from there to the registers of the warp that multiplies their panel. The
// rows of x stay in shared memory, where wgmma reads them. One warp copies, two warpgroups multiply; barriers tell when
// a stage is full and when it is empty.
#include "cuda/launch.cuh"
#include "cuda/sm90/matmul_config.cuh"
#include "cuda/sm90/matmul_w8a8.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/tensor_map.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace pybatch::cuda {
namespace {

struct Pipeline {
  char* stages;      // [stages], each the rows of x and the weights
  uint64_t* filled;  // [stages]
  uint64_t* emptied;
};

__device__ __forceinline__ void wait_for(uint64_t* barrier, uint32_t phase) {
  while (!mbarrier_try_wait_parity(barrier, phase % 2)) {
  }
}

// Blocks that run at one time share kRowTilesAside tiles of rows, and few columns.
struct Place {
  int64_t row, panel;  // the first ones
};
template <class Tile>
__device__ __forceinline__ Place place_of_block(const MatmulParams& p) {
  const int64_t rows = ceil_div(p.m, Tile::kRows), columns = ceil_div(p.n, kTileColumns);
  const int64_t group = blockIdx.x / (kRowTilesAside * columns), within = blockIdx.x % (kRowTilesAside * columns);
  const int64_t left = rows - group * kRowTilesAside, aside = left < kRowTilesAside ? left : kRowTilesAside;
  return {(group * kRowTilesAside + within % aside) * Tile::kRows, within / aside * kTilePanels};
}

// One warp: fills the stages in turn, as they are emptied.
template <class Tile>
__device__ __forceinline__ void copy_stages(const MatmulParams& p, const CUtensorMap& rows, const Pipeline& pipeline,
                                            Place place) {
  const int lane = threadIdx.x % kWarp;
  const int64_t panels = ceil_div(p.n, kPanel), groups = ceil_div(p.k, 4), group_bytes = kPanel * 4;
  const char* weights = static_cast<const char*>(p.weight);
  const auto count = static_cast<uint32_t>(ceil_div(p.k, kStageK));
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t stage = i % Tile::kStages, round = i / Tile::kStages;
    if (round > 0) wait_for(pipeline.emptied + stage, round - 1);
    char* to = pipeline.stages + stage * Tile::kStageBytes;
    char* to_weights = to + Tile::kRowBytes;
    const int64_t first = int64_t{i} * kStageK / 4, left = groups - first;
    const int bytes = static_cast<int>(left * group_bytes < kStagePanelBytes ? left * group_bytes : kStagePanelBytes);
    // Beyond K, x is zero, so any readable weights will do.
    for (int at = bytes + lane * 16; at < kStagePanelBytes; at += kWarp * 16) {
      for (int panel = 0; panel < kTilePanels; ++panel) {
        *reinterpret_cast<uint4*>(to_weights + panel * kStagePanelBytes + at) = uint4{};
      }
    }
    __syncwarp();
    if (lane != 0) continue;
    mbarrier_arrive_expect_tx(pipeline.filled + stage, Tile::kRowBytes + kTilePanels * bytes);
    cp_async_bulk_tensor_2d(to, rows, static_cast<int32_t>(i * kStageK), static_cast<int32_t>(place.row),
                            pipeline.filled + stage);
    for (int j = 0; j < kTilePanels; ++j) {
      const int64_t panel = place.panel + j < panels ? place.panel + j : panels - 1;
      cp_async_bulk(to_weights + j * kStagePanelBytes, weights + (panel * (groups + 1) + first) * group_bytes, bytes,
                    pipeline.filled + stage);
    }
  }
}

// The A operand of the step-th 32 bytes of K: row g of the fragment is column g of the panel. Lanes two apart would
// meet in a bank, so half of them load their second row first.
__device__ __forceinline__ void load_weights(uint32_t (&a)[4], const char* panel, int step, int lane) {
  const int g = lane / 4, t = lane % 4, first = g + t / 2 * 8, second = first ^ 8;
  const auto* words = reinterpret_cast<const uint32_t*>(panel);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t* group = words + (8 * step + 4 * half + t) * kPanel;
    const uint32_t x = group[first], y = group[second];
    a[2 * half] = t < 2 ? x : y;
    a[2 * half + 1] = t < 2 ? y : x;
  }
}

// sum = the products of the warpgroup's 64 columns and all rows of the tile.
template <class Tile>
__device__ __forceinline__ void multiply_stages(int32_t (&sum)[Tile::kRows / 2], const Pipeline& pipeline,
                                                uint32_t count, int panel) {
  constexpr int kSteps = kStageK / 32;
  const int lane = threadIdx.x % kWarp;
  uint32_t a[kSteps][4];
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t stage = i % Tile::kStages;
    wait_for(pipeline.filled + stage, i / Tile::kStages);
    const char* rows = pipeline.stages + stage * Tile::kStageBytes;
    const char* weights = rows + Tile::kRowBytes + panel * kStagePanelBytes;
    // Half a stage is multiplied while the weights of the next half are loaded.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int step = half * kSteps / 2; step < (half + 1) * kSteps / 2; ++step) {
        load_weights(a[step], weights, step, lane);
      }
      wgmma_fence();
#pragma unroll
      for (int step = half * kSteps / 2; step < (half + 1) * kSteps / 2; ++step) {
        wgmma_m64k32_s8<Tile::kRows>(sum, a[step], wgmma_descriptor(rows + step * 32), i > 0 || step > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (half == 0 && i > 0) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(pipeline.emptied + (i - 1) % Tile::kStages);
      }
    }
  }
  wgmma_wait<0>();
}

// Sums go through the memory of the stages, so that a warp's lanes turn into neighbouring columns.
template <class Tile>
__device__ __forceinline__ void write_tile(const MatmulParams& p, const float* row_scale, char* shared,
                                           const int32_t (&sum)[Tile::kRows / 2], Place place, int panel) {
  const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  named_barrier_sync(1, kConsumers * kWarpgroup);
  const int group = panel / 4, column_of_warp = panel % 4 * kPanel;
  int32_t* sums = reinterpret_cast<int32_t*>(shared) + group * Tile::kRows * Tile::kPitch;
#pragma unroll
  for (int i = 0; i < Tile::kRows / 2; ++i) {
    const int row = i / 4 * 8 + 2 * t + i % 2, column = column_of_warp + g + i / 2 % 2 * 8;
    sums[row * Tile::kPitch + column] = sum[i];
  }
  named_barrier_sync(2 + group, kWarpgroup);
  const int within = panel % 2 * kWarp + lane;
  const int64_t column = place.panel * kPanel + group * 64 + within;
  if (column >= p.n) return;
  const ColumnScaling of_column = column_scaling(p, row_scale, column);
  auto product = [&](int row) { return of_column.apply(sums[row * Tile::kPitch + within], place.row + row); };
  const int64_t left = p.m - place.row;
  const int begin = panel % 4 / 2, end = left < Tile::kRows ? static_cast<int>(left) : Tile::kRows;
  auto write_rows = [&](DType type) {
    if (is_gated(p.epilogue)) {
#pragma unroll 4
      for (int row = begin; row < end; row += 2) write_gated(p, type, place.row + row, column, product(row));
      return;
    }
    constexpr int kAtOnce = 16;  // rows whose loads are in flight together
    for (int first = begin; first < end; first += 2 * kAtOnce) {
      float products[kAtOnce], residuals[kAtOnce];
#pragma unroll
      for (int i = 0, row = first; i < kAtOnce; ++i, row += 2) {
        if (row >= end) break;
        residuals[i] = load_residual(p, type, place.row + row, column);
        products[i] = product(row);
      }
#pragma unroll
      for (int i = 0, row = first; i < kAtOnce; ++i, row += 2) {
        if (row >= end) break;
        write_sum(p, type, place.row + row, column, products[i], residuals[i]);
      }
    }
  };
  switch (p.out.dtype) {
    case DType::f32: return write_rows(DType::f32);
    case DType::f16: return write_rows(DType::f16);
    default: return write_rows(DType::bf16);
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    wgmma_kernel(MatmulParams p, const float* row_scale, const __grid_constant__ CUtensorMap rows) {
  char* shared = dynamic_shared<char>();
  auto* barriers = reinterpret_cast<uint64_t*>(shared + Tile::stage_bytes());
  const Pipeline pipeline = {shared, barriers, barriers + Tile::kStages};
  const int warp = threadIdx.x / kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      mbarrier_init(pipeline.filled + i, 1);
      mbarrier_init(pipeline.emptied + i, kConsumers * kWarpgroup / kWarp);
    }
    fence_proxy_async();
  }
  __syncthreads();
  const Place place = place_of_block<Tile>(p);

  if (threadIdx.x < kWarpgroup) {
    setmaxnreg_dec<kCopyRegisters>();
    if (warp == 0) copy_stages<Tile>(p, rows, pipeline, place);
    return;
  }
  setmaxnreg_inc<kMultiplyRegisters>();
  const int panel = warp - kWarpgroup / kWarp;
  int32_t sum[Tile::kRows / 2];
  multiply_stages<Tile>(sum, pipeline, static_cast<uint32_t>(ceil_div(p.k, kStageK)), panel);

  write_tile<Tile>(p, row_scale, shared, sum, place, panel);
}

template <class Tile>
void run(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  const dim3 grid(ceil_div(p.m, Tile::kRows) * ceil_div(p.n, kTileColumns));
  const CUtensorMap rows = byte_matrix_map(p.x.data, p.m, p.k, p.x.row_stride, Tile::kRows);
  launch(wgmma_kernel<Tile>, grid, dim3(Tile::kThreads), Tile::shared_bytes(), stream, p, row_scale, rows);
}

}  // namespace

bool wgmma_pays(const MatmulParams& p) {
  return p.experts.count == 0 && p.m >= kWgmmaRows && p.n > 0 && p.k > 0 &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

void matmul_w8a8_wgmma(const MatmulParams& p, const float* row_scale, cudaStream_t stream) {
  if (large_tile_pays(p.m, p.n, multiprocessors())) return run<LargeTile>(p, row_scale, stream);
  run<SmallTile>(p, row_scale, stream);
}

}  // namespace pybatch::cuda
