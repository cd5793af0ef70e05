// attention_mass in two passes, with fp32 arithmetic throughout: the softmax of each row (one query, one of its heads),
// then, a thread a cached token, the sum of what the rows give to it, in their order. Scores are computed in both.
#include "cuda/attention_softmax.cuh"
#include "cuda/kernels.h"
#include "cuda/kv_cache.cuh"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kTokens = 64;  // of a tile of keys, and threads of a block
constexpr int kRows = 16;    // scored together

struct Softmax {
  float max, inverse;  // in base two; 1 / sum
};

// The rows of one sequence and KV head that count: row r is query r / group, head kv_head * group + r % group.
struct Rows {
  const AttentionMassParams& p;
  int sequence, kv_head, group, first_query, count, position;  // position: of the first query in the cache

  __device__ __forceinline__ Rows(const AttentionMassParams& p, int sequence, int kv_head)
      : p(p),
        sequence(sequence),
        kv_head(kv_head),
        group(static_cast<int>(p.heads) / static_cast<int>(p.cache.kv_heads)),
        first_query(p.first[sequence]) {
    const int queries = p.query_start[sequence + 1] - first_query;
    count = queries * group;
    position = p.seq_lens[sequence] - queries;
  }
  __device__ __forceinline__ int last_seen(int row) const { return position + row / group; }
  __device__ __forceinline__ int64_t query(int row) const { return first_query + row / group; }
  __device__ __forceinline__ int64_t head(int row) const { return kv_head * group + row % group; }
};

// In shared memory: [kRows][dim] of q, scaled for base two, then [dim][kTokens] of keys.
struct Tiles {
  float *q, *k;
  int dim;

  __device__ __forceinline__ explicit Tiles(const KvCache& c)
      : q(dynamic_shared<float>()), k(q + kRows * c.head_dim), dim(static_cast<int>(c.head_dim)) {}

  // Zeros past the last row.
  __device__ __forceinline__ void load_rows(const Rows& rows, int first) const {
    const AttentionMassParams& p = rows.p;
    for (int i = threadIdx.x; i < kRows * dim; i += kTokens) {
      const int row = first + i / dim;
      const int64_t at = rows.query(row) * p.q.row_stride + rows.head(row) * dim + i % dim;
      q[i] = row < rows.count ? load_as(p.q.dtype, p.q.data, at) * (p.scale * kLog2E) : 0.0f;
    }
  }

  // The tokens from `first` on, zeros from `end` on: each thread the key that it scores.
  __device__ __forceinline__ void load_keys(const Rows& rows, int first, int end) const {
    const KvCache& c = rows.p.cache;
    const int token = first + static_cast<int>(threadIdx.x), size = static_cast<int>(c.block_size);
    const bool valid = token < end;
    const int32_t* table = rows.p.block_tables + rows.sequence * rows.p.block_table_stride;
    const int64_t block = valid ? table[token / size] : 0, offset = token % size;
    const int together = scaled_together(c);
    for (int d = 0; d < dim;) {
      const float scale = valid ? key_scale(c, block, rows.kv_head, offset, d / together) : 0.0f;
      for (const int stop = d + together < dim ? d + together : dim; d < stop; ++d) {
        k[d * kTokens + threadIdx.x] = valid ? key_code(c, block, rows.kv_head, offset, d) * scale : 0.0f;
      }
    }
  }

  // Of every row against this thread's key.
  __device__ __forceinline__ void score(float (&scores)[kRows]) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) scores[r] = 0.0f;
    for (int d = 0; d < dim; d += 4) {
      float key[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) key[i] = k[(d + i) * kTokens + threadIdx.x];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float4 x = *reinterpret_cast<const float4*>(q + r * dim + d);
        scores[r] = fmaf(x.w, key[3], fmaf(x.z, key[2], fmaf(x.y, key[1], fmaf(x.x, key[0], scores[r]))));
      }
    }
  }
};

// A block a tile of rows: each thread's tokens are kTokens apart, from the same positions on for every row.
__global__ void __launch_bounds__(kTokens) softmax_kernel(AttentionMassParams p, Softmax* softmax) {
  begin_kernel();
  const int sequences = static_cast<int>(p.sequences);
  int tile = static_cast<int>(blockIdx.x), sequence = 0;
  for (; sequence < sequences; ++sequence) {
    const int tiles = (Rows(p, sequence, 0).count + kRows - 1) / kRows;
    if (tile < tiles) break;
    tile -= tiles;
  }
  if (sequence == sequences) return;
  const Rows rows(p, sequence, static_cast<int>(blockIdx.y));
  const Tiles tiles(p.cache);
  const int first_row = tile * kRows;
  const int last_row = first_row + kRows < rows.count ? first_row + kRows - 1 : rows.count - 1;
  float max[kRows], sum[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) max[r] = -INFINITY, sum[r] = 0.0f;
  tiles.load_rows(rows, first_row);
  const int end = rows.last_seen(last_row) + 1;
  for (int first = 0; first < end; first += kTokens) {
    tiles.load_keys(rows, first, end);
    __syncthreads();
    float scores[kRows];
    tiles.score(scores);
    __syncthreads();
    const int token = first + static_cast<int>(threadIdx.x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (token > rows.last_seen(first_row + r)) continue;
      const float larger = fmaxf(max[r], scores[r]);
      sum[r] = fmaf(sum[r], ex2_approx(max[r] - larger), ex2_approx(scores[r] - larger));
      max[r] = larger;
    }
  }
  float* scratch = tiles.k;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float largest = block_reduce<Largest>(max[r], scratch);
    const float total = block_reduce<Add>(max[r] == -INFINITY ? 0.0f : sum[r] * ex2_approx(max[r] - largest), scratch);
    const int row = first_row + r;
    if (threadIdx.x == 0 && row < rows.count) {
      softmax[rows.query(row) * p.heads + rows.head(row)] = {largest, 1.0f / total};
    }
  }
}

// A block a tile of cached tokens.
__global__ void __launch_bounds__(kTokens) mass_kernel(AttentionMassParams p, const Softmax* softmax) {
  begin_kernel();
  const int sequence = static_cast<int>(blockIdx.z), kv_head = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.x) * kTokens, length = p.seq_lens[sequence];
  const Rows rows(p, sequence, kv_head);
  if (rows.count == 0 || first >= length) return;
  const Tiles tiles(p.cache);
  tiles.load_keys(rows, first, length);

  const int token = first + static_cast<int>(threadIdx.x);
  const int known = length - (p.query_start[sequence + 1] - p.query_start[sequence]);
  auto mass = [&](int32_t row) { return p.mass + row * p.mass_row_stride + kv_head * p.mass_capacity + token; };
  float total = token < known && p.sources[sequence] >= 0 ? *mass(p.sources[sequence]) : 0.0f;
  // Rows of queries before the tile's first token see nothing of it.
  const int unseeing = first > rows.position ? (first - rows.position) * rows.group : 0;
  for (int first_row = unseeing; first_row < rows.count; first_row += kRows) {
    tiles.load_rows(rows, first_row);
    __syncthreads();
    float scores[kRows];
    tiles.score(scores);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row + r;
      if (row >= rows.count || token > rows.last_seen(row)) continue;
      const Softmax of_row = softmax[rows.query(row) * p.heads + rows.head(row)];
      total = fmaf(ex2_approx(scores[r] - of_row.max), of_row.inverse, total);
    }
  }
  if (token < length) *mass(p.rows[sequence]) = total;
}

}  // namespace

size_t attention_mass_workspace(const AttentionMassParams& p) { return p.tokens * p.heads * sizeof(Softmax); }

void attention_mass(const AttentionMassParams& p, void* workspace, cudaStream_t stream) {
  auto* softmax = static_cast<Softmax*>(workspace);
  const int64_t group = p.heads / p.cache.kv_heads, most = p.block_table_stride * p.cache.block_size;
  const size_t bytes = (kRows + kTokens) * p.cache.head_dim * sizeof(float);
  const dim3 row_tiles(p.tokens * group / kRows + p.sequences, p.cache.kv_heads);
  const dim3 token_tiles(ceil_div(most < p.mass_capacity ? most : p.mass_capacity, kTokens), p.cache.kv_heads,
                         p.sequences);
  launch(softmax_kernel, row_tiles, dim3(kTokens), bytes, stream, p, softmax);
  launch(mass_kernel, token_tiles, dim3(kTokens), bytes, stream, p, softmax);
}

}  // namespace pybatch::cuda
