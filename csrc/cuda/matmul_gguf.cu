// matmul_gguf: an mma step is one block of 32 activations, whose dot products with the codes of the weights are exact;
// scales then multiply them, block by block in ascending K. Weights are the rows of the product, tokens its columns, as
// in matmul_kernel.cuh, and so is the way that warps share the work. Where there are few tiles, several blocks
// have the parts of K of one, and the last of them to finish adds them up.
#include "cuda/gguf_blocks.cuh"
#include "cuda/kernels.h"
#include "cuda/matmul_kernel.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kBlock = 32;  // activations that share a scale

struct alignas(16) ActivationBlock {
  int8_t q[kBlock];
  float scale;
  float scaled_sum;  // scale * sum(q), which a weight block's only min multiplies
  int32_t sum[2];    // of each half of q
};

constexpr int kQuantizeWarps = 8;

// The parts of K: more where it is long, which columns are then mostly too few for. Rows have no say, and nor do
// columns, of which each rank of several has a share, so that the bits are those of any batch and one rank.
__host__ __device__ __forceinline__ int parts_of(const MatmulParams& p) {
  return p.experts.count == 0 && p.k > 8192 ? 2 * kSplits : kSplits;
}

// The rows of a tile, its columns, and the blocks that share its parts of K.
struct Plan {
  int rows, columns;
  int64_t tiles;
  int parts, blocks;
};
Plan plan_of(const MatmulParams& p) {
  const int64_t together = rows_together(p);
  const int rows = together > 16 ? 32 : together > 8 ? 16 : 8, columns = (rows == 8 ? 1 : 4) * kWarpColumns;
  const int64_t tiles = row_tiles(p, rows) * ceil_div(p.n, columns);
  const int parts = parts_of(p), of_block = rows == 8 ? kSplits : 1;
  const bool split = p.experts.count == 0 && (rows == 8 || tiles < multiprocessors());
  return {rows, columns, tiles, parts, split ? parts / of_block : 1};
}

size_t x_bytes(const MatmulParams& p) {
  return static_cast<size_t>(p.x_rows() * (p.k / kBlock)) * sizeof(ActivationBlock);
}
size_t sum_bytes(const Plan& plan) {
  return plan.blocks == 1 ? 0 : static_cast<size_t>(plan.tiles * plan.parts * plan.rows * plan.columns) * sizeof(float);
}

struct Workspace {
  ActivationBlock* x;  // [x_rows, blocks]
  float* sums;         // [tiles][parts][rows][columns]
  int32_t* finished;   // [tiles], blocks

  Workspace(const MatmulParams& p, const Plan& plan, void* data)
      : x(static_cast<ActivationBlock*>(data)),
        sums(reinterpret_cast<float*>(static_cast<char*>(data) + x_bytes(p))),
        finished(reinterpret_cast<int32_t*>(static_cast<char*>(data) + x_bytes(p) + sum_bytes(plan))) {}
};

// A warp a block. In a row with a value that is not finite that block's scale is NaN, and so are the row's results.
// Zeroes `finished` for the kernel behind it.
template <class T>
__global__ void __launch_bounds__(kQuantizeWarps* kWarp)
    quantize_kernel(MatmulParams p, ActivationBlock* to, int32_t* finished, int64_t tiles) {
  begin_kernel();
  const int lane = threadIdx.x % kWarp;
  for (int64_t tile = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; tile < tiles;
       tile += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    finished[tile] = 0;
  }
  const int64_t blocks = p.k / kBlock, i = static_cast<int64_t>(blockIdx.x) * kQuantizeWarps + threadIdx.x / kWarp;
  if (i >= p.x_rows() * blocks) return;
  const float x = to_float(static_cast<const T*>(p.x.data)[i / blocks * p.x.row_stride + i % blocks * kBlock + lane]);
  const bool finite = __all_sync(kAllLanes, isfinite(x));
  const float most = warp_reduce<Largest>(fabsf(x)), scale = most / 127.0f;
  const bool small = scale < 0x1p-126f;  // below the smallest normal number
  const int q = small || !finite ? 0 : __float2int_rn(x * (127.0f / most));
  int sum = q;
  for (int offset = kBlock / 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  const int other = __shfl_xor_sync(kAllLanes, sum, kBlock / 2);
  to[i].q[lane] = static_cast<int8_t>(q);
  if (lane != 0) return;
  to[i].scale = !finite ? NAN : small ? 0.0f : scale;
  to[i].scaled_sum = to[i].scale * static_cast<float>(sum + other);
  to[i].sum[0] = sum;
  to[i].sum[1] = other;
}

// Sizes of the kernel for a tile of matmul_config.cuh. A pipeline stage is 256 weights a column.
template <class Type, class Tile>
struct GgufConfig {
  static constexpr int kSteps = 8, kStages = 2, kPanels = kWarpColumns / kPanel;
  static constexpr int kGroupBytes = kPanel * Type::kBytes;
  static constexpr int kWeightBytes = kSteps * kBlock / Type::kWeights * kGroupBytes;        // of a panel
  static constexpr int kRowPitch = kSteps * static_cast<int>(sizeof(ActivationBlock)) + 16;  // rows in different banks
  static constexpr int kXBytes = Tile::kRows * kRowPitch;
  static constexpr int kStageBytes = kXBytes + Tile::kWarpsN * kPanels * kWeightBytes;
  static constexpr int kPart = Tile::kRows * kPartPitch;

  static constexpr size_t shared_bytes() {
    const size_t stages = Tile::kWarpsK * kStages * kStageBytes, parts = Tile::kWarps * kPart * sizeof(float);
    return stages > parts ? stages : parts;
  }
};

// sum += the products of one step: 16 columns of weights, the lane's two of them, and eight tokens.
template <class Type>
__device__ __forceinline__ void multiply_step(float (&sum)[4], const uint32_t (&codes)[4],
                                              const BlockScales (&columns)[2], const char* x, int pitch, int g, int t) {
  const auto* mine = reinterpret_cast<const ActivationBlock*>(x + g * pitch);
  const uint32_t b[2] = {reinterpret_cast<const uint32_t*>(mine->q)[t],
                         reinterpret_cast<const uint32_t*>(mine->q)[t + 4]};
  const ActivationBlock* tokens[2];
  for (int i = 0; i < 2; ++i) tokens[i] = reinterpret_cast<const ActivationBlock*>(x + (2 * t + i) * pitch);
#pragma unroll
  for (int s = 0; s < Type::kScales; ++s) {
    int32_t dot[4];
    for (int e = 0; e < 4; ++e) {
      const ActivationBlock& token = *tokens[e % 2];
      dot[e] =
          Type::kOffset == 0 ? 0 : -Type::kOffset * (Type::kScales == 2 ? token.sum[s] : token.sum[0] + token.sum[1]);
    }
    if constexpr (Type::kScales == 1) {
      mma_m16n8k32_s8(dot, codes, b);
    } else {  // one half of the codes, the other as zeros
      const uint32_t half[4] = {s == 0 ? codes[0] : 0, s == 0 ? codes[1] : 0, s == 1 ? codes[2] : 0,
                                s == 1 ? codes[3] : 0};
      mma_m16n8k32_s8(dot, half, b);
    }
    for (int e = 0; e < 4; ++e) {
      sum[e] = fmaf(static_cast<float>(dot[e]), columns[e / 2].scale[s] * tokens[e % 2]->scale, sum[e]);
    }
  }
#pragma unroll
  for (int i = 0; i < Type::kMins; ++i) {
    for (int e = 0; e < 4; ++e) {
      const ActivationBlock& token = *tokens[e % 2];
      const float of_min = Type::kMins == 1 ? token.scaled_sum : token.scale * static_cast<float>(token.sum[i]);
      sum[e] = fmaf(columns[e / 2].min[i], of_min, sum[e]);
    }
  }
}

// sum_of(row) of the tile's rows from `begin` on, as products; the lanes of a warp have neighbouring columns.
template <class Tile, class F>
__device__ __forceinline__ void write_rows(const MatmulParams& p, int64_t first_row, int64_t column, int begin,
                                           int step, const F& sum_of) {
  if (column >= p.n) return;
  const ColumnScaling of_column = column_scaling(p, nullptr, column);
  for (int row = begin; row < Tile::kRows && first_row + row < p.m; row += step) {
    write_product(p, first_row + row, column, of_column.apply(sum_of(row), first_row + row));
  }
}

template <class Type, class Tile>
__global__ void __launch_bounds__(Tile::kWarps* kWarp, 2) gguf_kernel(MatmulParams p, Workspace work) {
  begin_kernel();
  using Config = GgufConfig<Type, Tile>;
  constexpr int kSteps = Config::kSteps, kPanels = Config::kPanels, kTokenTiles = Tile::kRows / 8,
                kStages = Config::kStages;
  constexpr bool kAlone = Tile::kWarpsN == 1;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const int warp_n = warp % Tile::kWarpsN, warp_k = warp / Tile::kWarpsN;
  const int64_t first_row = take_tile(p, Tile::kRows);
  if (first_row >= p.m) return;
  const int64_t first_column = (static_cast<int64_t>(blockIdx.y) * Tile::kWarpsN + warp_n) * kWarpColumns;
  const int64_t blocks = p.k / kBlock, panels = ceil_div(p.n, kPanel) - first_column / kPanel;
  const int64_t panel_bytes = p.k / Type::kWeights * Config::kGroupBytes;
  const char* weights = static_cast<const char*>(p.weight) + (panels > 0 ? first_column / kPanel * panel_bytes : 0);
  const int thread = kAlone ? lane : static_cast<int>(threadIdx.x);
  char* shared = dynamic_shared<char>() + warp_k * kStages * Config::kStageBytes;
  auto wait_for_others = [] { kAlone ? __syncwarp() : __syncthreads(); };

  auto copy_stage = [&](int64_t stage) {
    char* to = shared + stage % kStages * Config::kStageBytes;
    constexpr int kParts = kSteps * static_cast<int>(sizeof(ActivationBlock)) / 16;
    for (int i = thread; i < Tile::kRows * kParts; i += Tile::kWarpsN * kWarp) {
      const int row = i / kParts, part = i % kParts;
      const int64_t block = stage * kSteps + part / 3;
      const bool valid = first_row + row < p.m && block < blocks;
      const char* from =
          reinterpret_cast<const char*>(work.x + (valid ? x_row(p, first_row + row) * blocks + block : 0));
      cp_async_16(to + row * Config::kRowPitch + part * 16, from + part % 3 * 16, valid);
    }
    to += Config::kXBytes + warp_n * kPanels * Config::kWeightBytes;
    for (int i = lane; i < kPanels * Config::kWeightBytes / 16; i += kWarp) {
      const int64_t panel = i * 16 / Config::kWeightBytes;
      const int64_t at = stage * Config::kWeightBytes + i * 16 % Config::kWeightBytes;
      const bool valid = panel < panels && at < panel_bytes;
      cp_async_16(to + i * 16, weights + (valid ? panel * panel_bytes + at : 0), valid);
    }
  };

  float sum[kPanels][kTokenTiles][4] = {}, total[kPanels][kTokenTiles][4] = {};
  const int parts_of_k = parts_of(p);
  const int64_t all_stages = ceil_div(blocks, kSteps), split = ceil_div(all_stages, parts_of_k);
  const bool in_part = kAlone || gridDim.z > 1;
  const int part = kAlone ? static_cast<int>(blockIdx.z) * kSplits + warp_k : static_cast<int>(blockIdx.z);
  const int64_t part_begin = part * split;
  const int64_t begin = part_begin < all_stages ? part_begin : all_stages;
  const int64_t end = in_part && begin + split < all_stages ? begin + split : all_stages;
  if (begin < end) copy_stage(begin);
  cp_async_commit();
  for (int64_t stage = begin; stage < end; ++stage) {
    if (stage + 1 < end) copy_stage(stage + 1);
    cp_async_commit();
    cp_async_wait<1>();
    wait_for_others();
    const char* here = shared + stage % kStages * Config::kStageBytes;
    const char* here_weights = here + Config::kXBytes + warp_n * kPanels * Config::kWeightBytes;
#pragma unroll 1
    for (int i = 0; i < kSteps; ++i) {
      const int step = i % (Type::kWeights / kBlock);
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        const char* group =
            here_weights + panel * Config::kWeightBytes + i * kBlock / Type::kWeights * Config::kGroupBytes;
        const uint32_t codes[4] = {Type::codes(group, g, step, t), Type::codes(group, g + 8, step, t),
                                   Type::codes(group, g, step, t + 4), Type::codes(group, g + 8, step, t + 4)};
        const BlockScales columns[2] = {Type::scales(group, g, step), Type::scales(group, g + 8, step)};
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) {
          const char* row = here + 8 * j * Config::kRowPitch + i * sizeof(ActivationBlock);
          multiply_step<Type>(sum[panel][j], codes, columns, row, Config::kRowPitch, g, t);
        }
      }
    }
    if (!kAlone && ((stage + 1) % split == 0 || stage + 1 == end)) {
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        for (int j = 0; j < kTokenTiles; ++j) {
          for (int e = 0; e < 4; ++e) total[panel][j][e] += sum[panel][j][e], sum[panel][j][e] = 0.0f;
        }
      }
    }
    wait_for_others();  // the stage is free
  }

  // Through shared memory, to add up the parts of K and give a warp's lanes neighbouring columns.
  __syncthreads();
  float* parts = dynamic_shared<float>();
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = 8 * j + 2 * t + e % 2, column = panel * kPanel + g + 8 * (e / 2);
        parts[warp * Config::kPart + row * kPartPitch + column] = kAlone ? sum[panel][j][e] : total[panel][j][e];
      }
    }
  }
  __syncthreads();
  const int64_t column = first_column + lane;
  constexpr int kEach = kAlone ? kSplits : 1;  // parts of a block, whose warps have every so many rows
  auto add_up = [](const float* first, int64_t apart, int count) {
    float x = 0.0f;
    for (int i = 0; i < count; ++i) x += first[i * apart];
    return x;
  };
  if (gridDim.z == 1) {
    const float* sums = parts + warp_n * Config::kPart + lane;
    return write_rows<Tile>(p, first_row, column, warp_k, kEach,
                            [&](int row) { return add_up(sums + row * kPartPitch, Config::kPart, kEach); });
  }
  constexpr int64_t kWidth = Tile::kWarpsN * kWarpColumns, kSize = Tile::kRows * kWidth;
  const int64_t tile = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  float* sums = work.sums + tile * parts_of_k * kSize + warp_n * kWarpColumns + lane;
  for (int row = 0; row < Tile::kRows; ++row) {
    sums[part * kSize + row * kWidth] = parts[warp * Config::kPart + row * kPartPitch + lane];
  }
  if (!last_to_finish(work.finished + tile, static_cast<int>(gridDim.z), dynamic_shared<int32_t>())) return;
  write_rows<Tile>(p, first_row, column, warp_k, kEach,
                   [&](int row) { return add_up(sums + row * kWidth, kSize, parts_of_k); });
}

template <class Type, class Tile>
void run(const MatmulParams& p, const Plan& plan, const Workspace& work, cudaStream_t stream) {
  const dim3 grid(row_tiles(p, Tile::kRows), ceil_div(p.n, Tile::kWarpsN * kWarpColumns), plan.blocks);
  launch(gguf_kernel<Type, Tile>, grid, dim3(Tile::kWarps * kWarp), GgufConfig<Type, Tile>::shared_bytes(), stream, p,
         work);
}

}  // namespace

size_t matmul_gguf_workspace(const MatmulParams& p) {
  const Plan plan = plan_of(p);
  return x_bytes(p) + sum_bytes(plan) + (plan.blocks == 1 ? 0 : plan.tiles * sizeof(int32_t));
}

void matmul_gguf(const MatmulParams& p, void* workspace, cudaStream_t stream) {
  const Plan plan = plan_of(p);
  const Workspace work(p, plan, workspace);
  with_float_type(p.x.dtype, [&](auto* type) {
    const dim3 grid(ceil_div(p.x_rows() * (p.k / kBlock), kQuantizeWarps));
    launch(quantize_kernel<std::remove_pointer_t<decltype(type)>>, grid, dim3(kQuantizeWarps * kWarp), 0, stream, p,
           work.x, work.finished, plan.blocks == 1 ? 0 : plan.tiles);
  });
  with_gguf_type(p.gguf_type, [&](auto* type) {
    using Type = std::remove_pointer_t<decltype(type)>;
    if (plan.rows == 32) return run<Type, MatmulTile<32, 4, 1>>(p, plan, work, stream);
    if (plan.rows == 16) return run<Type, MatmulTile<16, 4, 1>>(p, plan, work, stream);
    run<Type, FewRows<8>>(p, plan, work, stream);
  });
}

}  // namespace pybatch::cuda
