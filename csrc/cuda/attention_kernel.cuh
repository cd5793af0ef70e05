// The attention kernel for the tensor cores, and its launch for one type of KV cache; see attention.cu.
//
// A warp takes sixteen query rows: the query heads that share a KV head are adjacent, token by token. A block of up
// to eight warps passes over the KV tiles that its rows see.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/attention_copy.cuh"
#include "cuda/attention_plan.cuh"
#include "cuda/attention_softmax.cuh"
#include "cuda/attention_tiles.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr size_t kReservedShared = 1024;  // that a block takes beside its own

// The bounds of a work item.
struct Item {
  int sequence, kv_head, group;
  int local;           // its number among those of the sequence, or of the piece
  int pieces;          // of the sequence; 0: not cut
  int pieces_start;    // where their partial results begin
  int piece;           // where this one's goes
  int row, end_row;    // query rows: token * group + head of the group
  int begin, end;      // tokens that some row sees
  int first_position;  // of the sequence's first query
};

__device__ __forceinline__ Item item_of(const PagedAttentionParams& p, const WorkList& list, int index, int rows) {
  constexpr int kSplit = static_cast<int>(kAttentionSplit);
  Item item;
  item.sequence = list.sequence();
  item.group = static_cast<int>(p.heads / p.cache.kv_heads);
  const int queries = p.query_start[item.sequence + 1] - p.query_start[item.sequence];
  const int all_rows = queries * item.group, row_tiles = (all_rows + rows - 1) / rows;
  const int local = list.local(index), kv_heads = static_cast<int>(p.cache.kv_heads);
  item.local = local % (row_tiles * kv_heads);
  item.row = (row_tiles - 1 - item.local / kv_heads) * rows;  // the longest first, of all heads
  item.end_row = item.row + rows < all_rows ? item.row + rows : all_rows;
  item.kv_head = item.local % kv_heads;
  item.first_position = p.seq_lens[item.sequence] - queries;
  const int first = item.first_position + item.row / item.group, window = static_cast<int>(p.window);
  const int last = item.first_position + (item.end_row - 1) / item.group;
  item.begin = window > 0 && first >= window ? first - window + 1 : 0;
  item.end = last + 1;
  item.piece = item.pieces_start = list.pieces_start();
  item.pieces = item.pieces_start < 0 ? 0 : pieces_of(p, last + 1);
  if (item.pieces > 0) {
    const int piece = local / (row_tiles * kv_heads), split = (first_split(p, last) + piece) * kSplit;
    item.piece += piece;
    item.begin = item.begin > split ? item.begin : split;
    item.end = item.end < split + kSplit ? item.end : split + kSplit;
  }
  return item;
}

// One split of sixteen rows: lane 4 g + t has rows g and g + 8.
template <int kHeadDim>
struct Part {
  float out[kHeadDim / 8][4];
  float max[2], sum[2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      for (int e = 0; e < 4; ++e) out[j][e] = 0.0f;
    }
    for (int r = 0; r < 2; ++r) max[r] = -INFINITY, sum[r] = 0.0f;
  }
};

// The tokens that the lane's two rows see.
struct Visible {
  int first[2], last[2];

  __device__ __forceinline__ bool sees(int row, int token) const { return token >= first[row] && token <= last[row]; }
  // All lanes of a warp call together.
  __device__ __forceinline__ bool any_sees_from(int token) const {
    return __any_sync(kAllLanes, token <= last[0] || token <= last[1]);
  }
  __device__ __forceinline__ bool all_see(int begin, int end) const {
    return __all_sync(kAllLanes, sees(0, begin) && sees(0, end - 1) && sees(1, begin) && sees(1, end - 1));
  }
};

// Logits of sixteen rows against one tile of K.
template <class T, class KV, class Config>
__device__ __forceinline__ void multiply_qk(float (&s)[Config::kTile / 8][4], const T* q, const KV* k, int lane) {
  [[maybe_unused]] constexpr int kUnrolled = Config::kScaled ? 2 : Config::kHeadDim / 16;  // see multiply_pv
#pragma unroll
  for (int j = 0; j < Config::kTile / 8; ++j) {
    for (int e = 0; e < 4; ++e) s[j][e] = 0.0f;
  }
#pragma unroll kUnrolled
  for (int dim = 0; dim < Config::kHeadDim; dim += 16) {
    uint32_t a[4];
    ldmatrix_x4(a, q + lane % 16 * Config::kQPitch + dim + lane / 16 * 8);
#pragma unroll
    for (int token = 0; token < Config::kTile; token += 32) {
      uint32_t b[4][2];
      TileReader<T, KV>::load_k(b, k, Config::kKPitch, dim, token, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) Mma<T>::multiply(s[token / 8 + i], a, b[i]);
    }
  }
}

// The same for int4, whose groups have scales of their own: a group is two steps of the mma. Unrolled further, it would
// spill registers.
template <class T, class Config>
__device__ __forceinline__ void multiply_qk(float (&s)[Config::kTile / 8][4], const T* q, const uint32_t* k,
                                            const f16* k_scale, int lane) {
#pragma unroll
  for (int j = 0; j < Config::kTile / 8; ++j) {
    for (int e = 0; e < 4; ++e) s[j][e] = 0.0f;
  }
#pragma unroll 2
  for (int dim = 0; dim < Config::kHeadDim; dim += 32) {
    // In the order in which a word has the eight elements that this lane multiplies.
    const T* row = q + lane / 4 * Config::kQPitch + dim + lane % 4 * 8;
    const uint4 top = *reinterpret_cast<const uint4*>(row);
    const uint4 bottom = *reinterpret_cast<const uint4*>(row + 8 * Config::kQPitch);
    const uint32_t a[2][4] = {{top.x, bottom.x, top.y, bottom.y}, {top.z, bottom.z, top.w, bottom.w}};
#pragma unroll
    for (int j = 0; j < Config::kTile / 8; ++j) {
      uint32_t b[2][2];
      TileReader<T, Int4x2>::load_k(b, k, Config::kKPitch, dim, 8 * j, lane);
      float part[4] = {};
      Mma<T>::multiply(part, a[0], b[0]);
      Mma<T>::multiply(part, a[1], b[1]);
      const f16* scale = k_scale + dim / 32 * Config::kTile + TileReader<T, Int4x2>::column(j, lane % 4, 0);
#pragma unroll
      for (int e = 0; e < 4; ++e) s[j][e] = fmaf(part[e], to_float(scale[e % 2]), s[j][e]);
    }
  }
}

// Scales, caps and masks the logits. `first` is the tile's first token; whole: every row sees all of the tile.
template <class T, class KV, class Config>
__device__ __forceinline__ void mask_logits(float (&s)[Config::kTile / 8][4], const PagedAttentionParams& p,
                                            const f16* k_scale, int first, const Visible& visible, bool whole,
                                            int lane) {
  const float factor = p.soft_cap > 0.0f ? p.scale / p.soft_cap : p.scale * kLog2E;
#pragma unroll
  for (int j = 0; j < Config::kTile / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float scale = factor;
      if constexpr (Config::kScaled && !Config::kInt4) {
        scale *= to_float(k_scale[TileReader<T, KV>::column(j, lane % 4, half)]);
      }
      s[j][half] *= scale;
      s[j][half + 2] *= scale;
    }
  }
  if (p.soft_cap > 0.0f) {  // cap * tanh(x), in units of log2 e
#pragma unroll
    for (int j = 0; j < Config::kTile / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[j][e] = p.soft_cap * kLog2E * (1.0f - 2.0f / (1.0f + exp_approx(2.0f * s[j][e])));
      }
    }
  }
  if (whole) return;
#pragma unroll
  for (int j = 0; j < Config::kTile / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!visible.sees(e / 2, first + TileReader<T, KV>::column(j, lane % 4, e % 2))) s[j][e] = -INFINITY;
    }
  }
}

// Turns logits into weights, and brings the part's maximum and sum up to date; `rescale` is for its output so far.
template <int kTile, int kHeadDim>
__device__ __forceinline__ void softmax_weights(float (&s)[kTile / 8][4], Part<kHeadDim>& part, float (&rescale)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float max = -INFINITY;
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) max = fmaxf(max, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
    max = fmaxf(part.max[r], row_max(max));
    const float base = max == -INFINITY ? 0.0f : max;
    rescale[r] = max == part.max[r] ? 1.0f : ex2_approx(part.max[r] - base);
    part.max[r] = max;
    part.sum[r] *= rescale[r];
#pragma unroll
    for (int j = 0; j < kTile / 8; ++j) {
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        s[j][e] = ex2_approx(s[j][e] - base);
        part.sum[r] += s[j][e];
      }
    }
  }
}

template <int kHeadDim>
__device__ __forceinline__ void rescale_output(Part<kHeadDim>& part, const float (&rescale)[2]) {
  if (__all_sync(kAllLanes, rescale[0] == 1.0f && rescale[1] == 1.0f)) return;
#pragma unroll
  for (int j = 0; j < kHeadDim / 8; ++j) {
    for (int e = 0; e < 4; ++e) part.out[j][e] *= rescale[e / 2];
  }
}

// part.out += weights * V for those elements of V that are inf or NaN, where the row sees them.
template <class T, class KV, class Config>
__device__ __forceinline__ void add_not_finite(Part<Config::kHeadDim>& part, const float (&s)[Config::kTile / 8][4],
                                               const KV* v, int first, const Visible& visible, int lane) {
  float weights[Config::kTile / 8][4];  // indexed at run time, so in local memory: this hardly ever runs
  for (int j = 0; j < Config::kTile / 8; ++j) {
    for (int e = 0; e < 4; ++e) weights[j][e] = s[j][e];
  }
#pragma unroll 1
  for (int i = 0; i < Config::kTile; ++i) {  // lane i / 2 % 4 of a row has the weight of token i
    float weight[2];
    for (int r = 0; r < 2; ++r) {
      weight[r] = __shfl_sync(kAllLanes, weights[i / 8][2 * r + i % 2], lane / 4 * 4 + i / 2 % 4);
      weight[r] = to_float(from_float<T>(weight[r]));
    }
#pragma unroll
    for (int j = 0; j < Config::kHeadDim / 8; ++j) {
      for (int e = 0; e < 4; ++e) {
        const float x = to_float(v[i * Config::kVPitch + TileReader<T, KV>::column(j, lane % 4, e % 2)]);
        if (!isfinite(x) && visible.sees(e / 2, first + i)) part.out[j][e] += weight[e / 2] * x;
      }
    }
  }
}

// The weights of tokens 8 j to 8 j + 15 as an A operand, by the scales of one group of V.
template <class T, class KV, class Config>
__device__ __forceinline__ void load_weights(uint32_t (&a)[4], const float (&s)[Config::kTile / 8][4], int j,
                                             const f16* v_scale, int lane) {
  float w[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      w[i][e] = s[j + i][e];
      if constexpr (Config::kScaled) {
        const float weight = w[i][e] * to_float(v_scale[TileReader<T, KV>::column(j + i, lane % 4, e % 2)]);
        w[i][e] = w[i][e] == 0.0f ? 0.0f : weight;  // the scale may be inf or NaN too
      }
    }
    a[2 * i] = Mma<T>::pack(w[i][0], w[i][1]);
    a[2 * i + 1] = Mma<T>::pack(w[i][2], w[i][3]);
  }
}

// part.out += weights * V, for scaled types: a loop of sixteen tokens a time, whose weights are those moved to the
// front. Widening takes so many instructions that, unrolled, they would not stay in the cache next to the scheduler.
template <class T, class KV, class Config, class Tile>
__device__ __forceinline__ void multiply_pv(Part<Config::kHeadDim>& part, float (&s)[Config::kTile / 8][4],
                                            const Tile* v, const f16* v_scale, int lane) {
#pragma unroll 1
  for (int token = 0; token < Config::kTile; token += 16) {
    const f16* scales = v_scale + TileReader<T, KV>::column(token / 8, 0, 0);
    uint32_t a[4];
#pragma unroll
    for (int dim = 0; dim < Config::kHeadDim; dim += 32) {
      if (Config::kInt4 || dim == 0) {
        load_weights<T, KV, Config>(a, s, 0, scales + dim / 32 * Config::kTile, lane);
      }
      uint32_t b[4][2];
      TileReader<T, KV>::load_v(b, v, Config::kVPitch, token, dim, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) Mma<T>::multiply(part.out[dim / 8 + i], a, b[i]);
    }
#pragma unroll
    for (int j = 0; j + 2 < Config::kTile / 8; ++j) {
      for (int e = 0; e < 4; ++e) s[j][e] = s[j + 2][e];
    }
  }
}

// The same for 16-bit types. Where a row does not see a token its weight is zero, which an inf or NaN in V would turn
// into NaN: in a tile that is not whole they are left out, and added where they are seen.
template <class T, class Config, bool kWhole>
__device__ __forceinline__ void multiply_pv(Part<Config::kHeadDim>& part, const float (&s)[Config::kTile / 8][4],
                                            const T* v, int first, const Visible& visible, int lane) {
  uint32_t not_finite = 0;
#pragma unroll
  for (int j = 0; j < Config::kTile / 8; j += 2) {
    uint32_t a[4];
    load_weights<T, T, Config>(a, s, j, nullptr, lane);
#pragma unroll
    for (int dim = 0; dim < Config::kHeadDim; dim += 32) {
      uint32_t b[4][2];
      TileReader<T, T>::load_v(b, v, Config::kVPitch, 8 * j, dim, lane);
      if constexpr (!kWhole) {
#pragma unroll
        for (int i = 0; i < 8; ++i) not_finite |= Mma<T>::zero_not_finite(b[i / 2][i % 2]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) Mma<T>::multiply(part.out[dim / 8 + i], a, b[i]);
    }
  }
  if constexpr (!kWhole) {
    if (__any_sync(kAllLanes, not_finite != 0)) add_not_finite<T, T, Config>(part, s, v, first, visible, lane);
  }
}

// The rows' totals over several splits. The output is volatile so that it lies in local memory: registers have no room
// for it, and it is touched once a split.
template <int kHeadDim>
struct Total {
  volatile float out[kHeadDim / 8 * 4];
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kHeadDim / 8 * 4; ++i) out[i] = 0.0f;
    for (int r = 0; r < 2; ++r) max[r] = -INFINITY, sum[r] = 0.0f;
  }
  __device__ __forceinline__ void add(const Part<kHeadDim>& part) {
    MergeWeights w[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      w[r] = merge_weights(max[r], part.max[r]);
      max[r] = w[r].max;
      sum[r] = merge(w[r], sum[r], row_sum(part.sum[r]));
    }
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[4 * j + e] = merge(w[e / 2], out[4 * j + e], part.out[j][e]);
    }
  }
};

// Merges the pieces of an item's rows, all of which are there, in ascending order. A lane has four elements of several
// rows at once where there are as many, so that many loads are under way.
template <class T, int kTogether>
__device__ __forceinline__ void merge_pieces(const PagedAttentionParams& p, const Workspace& work, const Item& item) {
  const int dim = static_cast<int>(p.cache.head_dim), runs = dim / 4, all_runs = (item.end_row - item.row) * runs;
  const int first_head = item.kv_head * item.group + item.row;  // there is one query
  const int64_t first = item.pieces_start * p.heads + first_head, step = p.heads * dim;
  T* to = static_cast<T*>(p.out.data) + p.query_start[item.sequence] * p.out.row_stride + first_head * dim;
  for (int begin = static_cast<int>(threadIdx.x); begin < all_runs; begin += kTogether * kWarp) {
    const float* outputs[kTogether];
    const float2* sums[kTogether];
    float4 out[kTogether];
    float max[kTogether], sum[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int run = begin + j * kWarp < all_runs ? begin + j * kWarp : begin;
      outputs[j] = work.outputs + first * dim + run * 4;
      sums[j] = work.sums + first + run / runs;
      out[j] = {};
      max[j] = -INFINITY, sum[j] = 0.0f;
    }
#pragma unroll 4
    for (int i = 0; i < item.pieces; ++i) {
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const float4 part = *reinterpret_cast<const float4*>(outputs[j] + i * step);
        const float2 part_sum = sums[j][i * p.heads];
        const MergeWeights w = merge_weights(max[j], part_sum.x);
        max[j] = w.max;
        sum[j] = merge(w, sum[j], part_sum.y);
        out[j] = make_float4(merge(w, out[j].x, part.x), merge(w, out[j].y, part.y), merge(w, out[j].z, part.z),
                             merge(w, out[j].w, part.w));
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int run = begin + j * kWarp;
      if (run >= all_runs) break;
      const float inverse = inverse_sum(p, first_head + run / runs, max[j], sum[j]);
      to[4 * run] = from_float<T>(out[j].x * inverse);
      to[4 * run + 1] = from_float<T>(out[j].y * inverse);
      to[4 * run + 2] = from_float<T>(out[j].z * inverse);
      to[4 * run + 3] = from_float<T>(out[j].w * inverse);
    }
  }
}

template <class T, class KV, int kHeadDim>
__global__ void __launch_bounds__(kAttentionMaxWarps* kWarp, 1)
    attention_kernel(PagedAttentionParams p, Workspace work, Phase phase) {
  begin_kernel();
  using Config = AttentionConfig<T, KV, kHeadDim>;
  using Reader = TileReader<T, KV>;
  using Tile = std::conditional_t<Config::kInt4, uint32_t, KV>;
  constexpr int kTile = Config::kTile, kTilesASplit = kAttentionSplit / kTile;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const int dim = static_cast<int>(p.cache.head_dim);

  unsigned char* shared = dynamic_shared<unsigned char>();
  T* q = reinterpret_cast<T*>(shared + kAttentionStages * Config::kStageBytes + warp * Config::kQBytes);

  auto* next_item = reinterpret_cast<int32_t*>(shared + Config::next_item(warps));
  WorkList list(p, work, phase, warps * kAttentionRows);
  int index = list.first();
  for (; list.find(index); index = *next_item) {
    const Item item = item_of(p, list, index, warps * kAttentionRows);

    // K of a tile, then V, go in turn into the stages.
    const int first_tile = item.begin / kTile, end_tile = (item.end + kTile - 1) / kTile;
    TileCopy<Config> copy(p.cache, p.block_tables + item.sequence * p.block_table_stride, item.kv_head, item.begin,
                          item.end);
    int stage = -1;
    auto next_stage = [&] {
      stage = stage + 1 < kAttentionStages ? stage + 1 : 0;
      return shared + stage * Config::kStageBytes;
    };
    auto copy_part = [&](bool keys, int tile, unsigned char* to) {
      if (tile < end_tile) keys ? copy.copy_k(tile * kTile, to) : copy.copy_v(tile * kTile, to);
      cp_async_commit();
    };
    // K or V of a tile, when it has come. The stage of the part before it is free then, for the part two further on.
    auto wait_for_part = [&](bool keys, int tile) -> const unsigned char* {
      cp_async_wait<kAttentionStages - 2>();
      __syncthreads();
      const unsigned char* here = next_stage();
      copy_part(keys, tile + 1, shared + (stage > 0 ? stage - 1 : kAttentionStages - 1) * Config::kStageBytes);
      return here;
    };
    __syncthreads();  // the last item's stages are free, and everyone has read which this is
    copy_part(true, first_tile, shared);
    copy_part(false, first_tile, shared + Config::kStageBytes);

    const int next = threadIdx.x == 0 ? list.next() : 0;  // told below, when it has come

    // This warp's rows of Q, zeros where there are none.
    const int warp_row = item.row + warp * kAttentionRows;
    auto row_offset = [&](const auto& matrix, int row) {
      const int64_t token = p.query_start[item.sequence] + row / item.group;
      return token * matrix.row_stride + (item.kv_head * item.group + row % item.group) * dim;
    };
    for (int i = lane; i < kAttentionRows * kHeadDim / kRun; i += kWarp) {
      const int row = i / (kHeadDim / kRun), d = i % (kHeadDim / kRun) * kRun;
      float run[kRun] = {};
      if (warp_row + row < item.end_row && d < dim) {
        load_run(static_cast<const T*>(p.q.data) + row_offset(p.q, warp_row + row) + d, kRun, run);
      }
      *reinterpret_cast<uint4*>(q + row * Config::kQPitch + d) =
          make_uint4(Mma<T>::pack(run[0], run[1]), Mma<T>::pack(run[2], run[3]), Mma<T>::pack(run[4], run[5]),
                     Mma<T>::pack(run[6], run[7]));
    }

    if (threadIdx.x == 0) *next_item = next;

    Visible visible;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Where there is no row, what the last row sees; a warp without rows sees nothing.
      const int mine = warp_row + lane / 4 + 8 * r, row = mine < item.end_row ? mine : item.end_row - 1;
      const int position = warp_row < item.end_row ? item.first_position + row / item.group : -1;
      const int window = static_cast<int>(p.window);
      visible.first[r] = window > 0 && position >= window ? position - window + 1 : 0;
      visible.last[r] = position < item.end ? position : item.end - 1;
    }

    Total<kHeadDim> total;
    total.clear();
    Part<kHeadDim> part;
    part.clear();
    for (int tile = first_tile; tile < end_tile; ++tile) {
      const int first = tile * kTile;
      const bool any = visible.any_sees_from(first), whole = any && visible.all_see(first, first + kTile);
      float s[kTile / 8][4];
      const unsigned char* here = wait_for_part(true, tile);
      if (any) {
        const Tile* k = reinterpret_cast<const Tile*>(here);
        const f16* scales = reinterpret_cast<const f16*>(here + Config::kPartBytes);
        if constexpr (Config::kInt4) {
          multiply_qk<T, Config>(s, q, k, scales, lane);
        } else {
          multiply_qk<T, KV, Config>(s, q, k, lane);
        }
        mask_logits<T, KV, Config>(s, p, scales, first, visible, whole, lane);
        float rescale[2];
        softmax_weights<kTile, kHeadDim>(s, part, rescale);
        rescale_output(part, rescale);
      }
      here = wait_for_part(false, tile);
      if (any) {
        const Tile* v = reinterpret_cast<const Tile*>(here);
        const f16* scales = reinterpret_cast<const f16*>(here + Config::kPartBytes);
        if constexpr (Config::kScaled) {  // scales show what is not finite in V
          multiply_pv<T, KV, Config>(part, s, v, scales, lane);
        } else if (whole) {
          multiply_pv<T, Config, true>(part, s, v, first, visible, lane);
        } else {
          multiply_pv<T, Config, false>(part, s, v, first, visible, lane);
        }
      }
      if ((tile + 1) % kTilesASplit == 0 || tile + 1 == end_tile) {
        total.add(part);
        part.clear();
      }
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row + lane / 4 + 8 * r;
      if (row >= item.end_row) continue;
      const int head = item.kv_head * item.group + row % item.group;
      auto for_each_element = [&](auto store) {
#pragma unroll 4
        for (int j = 0; j < kHeadDim / 8; ++j) {
          for (int half = 0; half < 2; ++half) {
            const int d = Reader::element(j, lane % 4, half, dim);
            if (d < dim) store(d, total.out[4 * j + 2 * r + half]);
          }
        }
      };
      if (item.pieces > 0) {
        const int64_t at = item.piece * p.heads + head;
        float* to = work.outputs + at * dim;
        for_each_element([&](int d, float x) { to[d] = x; });
        if (lane % 4 == 0) work.sums[at] = make_float2(total.max[r], total.sum[r]);
      } else {
        T* to = static_cast<T*>(p.out.data) + row_offset(p.out, row);
        const float inverse = inverse_sum(p, head, total.max[r], total.sum[r]);
        for_each_element([&](int d, float x) { to[d] = from_float<T>(x * inverse); });
      }
    }
    if (item.pieces > 0) {
      int32_t* finished = p.counters + 1 + item.sequence * p.heads + item.local;
      const bool last = last_to_finish(finished, item.pieces, reinterpret_cast<int32_t*>(shared));
      const bool one_row = (item.end_row - item.row) * dim <= 4 * kWarp;
      if (last) one_row ? merge_pieces<T, 1>(p, work, item) : merge_pieces<T, 4>(p, work, item);
    }
  }
  if (threadIdx.x == 0) list.end(index);
}

template <class F>
void with_head_dim(int64_t head_dim, const F& f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64>());
  if (head_dim <= 128) return f(std::integral_constant<int, 128>());
  return f(std::integral_constant<int, 256>());
}

template <class T, class KV, int kHeadDim>
void attend(const PagedAttentionParams& p, const Workspace& work, int warps, Phase phase, cudaStream_t stream) {
  const size_t bytes = AttentionConfig<T, KV, kHeadDim>::shared_bytes(warps);
  const size_t resident = (max_shared_bytes() + kReservedShared) / (bytes + kReservedShared);
  const size_t blocks = std::min<size_t>(resident, kAttentionMaxWarps / warps) * multiprocessors();
  launch(attention_kernel<T, KV, kHeadDim>, dim3(blocks), dim3(warps * kWarp), bytes, stream, p, work, phase);
}

template <class T, class KV>
void attend_decodes(const PagedAttentionParams& p, const Workspace& work, cudaStream_t stream) {
  with_head_dim(p.cache.head_dim, [&](auto head_dim) { attend<T, KV, head_dim>(p, work, 1, Phase::decode, stream); });
}

template <class T, class KV>
void attend_prefills(const PagedAttentionParams& p, const Workspace& work, cudaStream_t stream) {
  with_head_dim(p.cache.head_dim, [&](auto head_dim) {
    int warps = kAttentionMaxWarps;
    while (warps > 1 && AttentionConfig<T, KV, head_dim>::shared_bytes(warps) > max_shared_bytes()) warps /= 2;
    attend<T, KV, head_dim>(p, work, warps, Phase::prefill, stream);
  });
}

template <class T, class KV>
void attend(const PagedAttentionParams& p, const Workspace& work, cudaStream_t stream) {
  attend_decodes<T, KV>(p, work, stream);
  if (p.tokens > p.sequences) attend_prefills<T, KV>(p, work, stream);
}

}  // namespace
}  // namespace pybatch::cuda
