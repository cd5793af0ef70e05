// K and V tiles of the attention kernel: how they are copied to shared memory, and loaded as B operands of the mma.
//
// 16-bit tiles are read with ldmatrix.trans. 8-bit tiles are read a word a row: the four numbers of a word are
// adjacent columns, so they go to four tiles of eight columns, and columns are permuted within 32. The rows of V are
// taken in the order that this permutation gives S's columns (tokens).
//
// A word of int4 gives four pairs of eight elements of a key, or of two tokens at four elements of a value. The
// elements of K are permuted within 32, as are those of Q, so that a word is two operands of a lane.
#pragma once

#include "cuda/attention_config.cuh"
#include "cuda/mma.cuh"
#include "pybatch/kv_cache.h"

namespace pybatch::cuda {

template <class T, class KV, int kBytes = sizeof(KV)>
struct TileReader {
  // Column of accumulator elements `half` and `half + 2` in the j-th tile of eight columns, of lane 4 g + t.
  static __device__ __forceinline__ int column(int j, int t, int half) { return 8 * j + 2 * t + half; }

  // Element of the head that is in that column of the output; none where it is not below dim.
  static __device__ __forceinline__ int element(int j, int t, int half, int) { return column(j, t, half); }

  // B operands of rows [row, row + 16) and columns [first, first + 32).
  static __device__ __forceinline__ void load(uint32_t (&b)[4][2], const KV* tile, int pitch, int row, int first,
                                              int lane) {
    const KV* at = tile + (row + lane % 16) * pitch + first + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t r[4];
      ldmatrix_x4_trans(r, at + 16 * i);
      b[2 * i][0] = r[0];
      b[2 * i][1] = r[1];
      b[2 * i + 1][0] = r[2];
      b[2 * i + 1][1] = r[3];
    }
  }
  static __device__ __forceinline__ void load_k(uint32_t (&b)[4][2], const KV* k, int pitch, int dim, int token,
                                                int lane) {
    load(b, k, pitch, dim, token, lane);
  }
  static __device__ __forceinline__ void load_v(uint32_t (&b)[4][2], const KV* v, int pitch, int token, int dim,
                                                int lane) {
    load(b, v, pitch, token, dim, lane);
  }
};

template <class T, class KV>
struct TileReader<T, KV, 1> {
  static __device__ __forceinline__ int column(int j, int t, int half) {
    return 32 * (j / 4) + 4 * t + 16 * half + j % 4;
  }
  static __device__ __forceinline__ int element(int j, int t, int half, int) { return column(j, t, half); }

  // Four words at `at`, `at` + step, and the same `further` on, become B operands of four tiles.
  static __device__ __forceinline__ void load(uint32_t (&b)[4][2], const KV* at, int step, int further, int lane) {
    const int g = lane / 4;
    at += 4 * (g / 2 + 4 * (g % 2));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t even = *reinterpret_cast<const uint32_t*>(at + i * further);
      const uint32_t odd = *reinterpret_cast<const uint32_t*>(at + i * further + step);
      const uint32_t low = prmt(even, odd, 0x5140), high = prmt(even, odd, 0x7362);
      b[0][i] = widen_low<T, KV>(low);
      b[1][i] = widen_high<T, KV>(low);
      b[2][i] = widen_low<T, KV>(high);
      b[3][i] = widen_high<T, KV>(high);
    }
  }
  // Rows 2t, 2t + 1 and 8 further.
  static __device__ __forceinline__ void load_k(uint32_t (&b)[4][2], const KV* k, int pitch, int dim, int token,
                                                int lane) {
    load(b, k + (dim + 2 * (lane % 4)) * pitch + token, pitch, 8 * pitch, lane);
  }
  // The tokens that column() gives for tiles token / 8 and token / 8 + 1.
  static __device__ __forceinline__ void load_v(uint32_t (&b)[4][2], const KV* v, int pitch, int token, int dim,
                                                int lane) {
    load(b, v + column(token / 8, lane % 4, 0) * pitch + dim, 16 * pitch, pitch, lane);
  }
};

template <class T>
struct TileReader<T, Int4x2, 1> {
  static __device__ __forceinline__ int column(int j, int t, int half) { return 8 * j + 2 * t + half; }
  // The last group of a head may be smaller, and then its words are as many fewer.
  static __device__ __forceinline__ int element(int j, int t, int half, int dim) {
    const int first = j / 4 * 32, words = (dim - first < 32 ? dim - first : 32) / 4, word = 2 * t + half;
    return word < words ? first + j % 4 * words + word : dim;
  }

  // B operands of rows [dim, dim + 32), 32 further, and the column of lane / 4 from `token` on: two, one after the
  // other.
  static __device__ __forceinline__ void load_k(uint32_t (&b)[2][2], const uint32_t* k, int pitch, int dim, int token,
                                                int lane) {
    const uint32_t word = k[(dim / 8 + lane % 4) * pitch + token + lane / 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = Mma<T>::widen_int4(word >> (4 * i));
  }
  static __device__ __forceinline__ void load_v(uint32_t (&b)[4][2], const uint32_t* v, int pitch, int token, int dim,
                                                int lane) {
    const int t = lane % 4, g = lane / 4;
    const uint32_t* at = v + (token / 4 + t / 2) * pitch + dim / 2 + 2 * g + t % 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t word = at[2 * i * pitch];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j][i] = Mma<T>::widen_int4(word >> (4 * j));
    }
  }
};

// The tokens of one sequence and KV head that a block of threads copies tile by tile.
struct KvSource {
  const KvCache* cache;
  const int32_t* blocks;  // the sequence's row of the block table
  int64_t kv_head;
  int64_t begin, end;  // tokens; those outside are read as zeros, whatever the cache holds there
  int block_shift;     // log2 of the block size
};

template <class KV>
__device__ __forceinline__ void copy_eight(KV* to, const KV* from, bool valid) {
  if constexpr (sizeof(KV) == 1) {
    cp_async_8(to, from, valid);
  } else {
    cp_async_16(to, from, valid);
  }
}

// Starts the copy of the tokens from `first` on into a stage of shared memory. Lane i of each warp holds the i-th block
// of the tile.
template <class Config, class KV>
__device__ __forceinline__ void copy_tile(const KvSource& from, int64_t first, unsigned char* stage) {
  constexpr int kTile = Config::kTile, kHeadDim = Config::kHeadDim;
  const KvCache& cache = *from.cache;
  const int lane = threadIdx.x % kWarp, dim = static_cast<int>(cache.head_dim);
  const int shift = from.block_shift, size = 1 << shift, blocks = (kTile + size - 1) >> shift;
  const int64_t my_token = first + static_cast<int64_t>(lane) * size;
  const bool mine = lane < blocks && my_token < from.end && my_token + size > from.begin;
  const int my_block = mine ? from.blocks[my_token >> shift] : 0;
  const int in_block = static_cast<int>(first & (size - 1));  // a tile may be half a block

  if constexpr (Config::kInt4) {
    // Runs of 16 bytes. K: a word of four tokens. V: two words of four tokens.
    auto* k = reinterpret_cast<uint32_t*>(stage);
    auto* v = reinterpret_cast<uint32_t*>(stage + Config::kKBytes);
    constexpr int kRuns = kTile / 4, kWords = kHeadDim / 8;
    for (int i = threadIdx.x; i < kRuns * kWords; i += blockDim.x) {
      const int token = i % kRuns * 4, word = i / kRuns;
      const int64_t block = __shfl_sync(kAllLanes, my_block, token >> shift);
      const bool valid = first + token < from.end && first + token + 4 > from.begin && 8 * word < dim;
      const int64_t row = from.kv_head * (dim / 8) + word, at = (row << shift) + in_block + (token & (size - 1));
      const auto* bytes = static_cast<const unsigned char*>(cache.k) + block * cache.k_block_stride;
      cp_async_16(k + word * Config::kKPitch + token, valid ? bytes + 4 * at : cache.k, valid);
    }
    for (int i = threadIdx.x; i < kRuns * kWords; i += blockDim.x) {
      const int token = i / kWords * 4, word = i % kWords;
      const int64_t block = __shfl_sync(kAllLanes, my_block, token >> shift);
      const bool valid = first + token < from.end && first + token + 4 > from.begin && 8 * word < dim;
      const int64_t row = ((from.kv_head << shift) + in_block + (token & (size - 1))) / 4;
      const auto* bytes = static_cast<const unsigned char*>(cache.v) + block * cache.v_block_stride;
      cp_async_16(v + token / 4 * Config::kVPitch + 4 * word, valid ? bytes + (row * (dim / 8) + word) * 16 : cache.v,
                  valid);
    }
  } else {
    // K: runs of eight tokens. The threads follow the order of the cache: block, then dimension, then token.
    KV* k = reinterpret_cast<KV*>(stage);
    const int run_shift = (size < kTile ? shift : 31 - __clz(kTile)) - 3;
    for (int i = threadIdx.x; i < kTile / 8 * kHeadDim; i += blockDim.x) {
      const int row = i >> run_shift, d = row % kHeadDim, b = row / kHeadDim;
      const int offset = (i & ((1 << run_shift) - 1)) * 8;
      const int token = (b << (run_shift + 3)) + offset;
      const int64_t block = __shfl_sync(kAllLanes, my_block, b);
      const bool valid = first + token < from.end && first + token + 8 > from.begin && d < dim;
      const int64_t at = block * cache.k_block_stride + (((from.kv_head * dim + d) << shift) + in_block + offset);
      copy_eight(k + d * Config::kKPitch + token, static_cast<const KV*>(cache.k) + (valid ? at : 0), valid);
    }

    // V: runs of eight dimensions, in the order of the cache.
    KV* v = reinterpret_cast<KV*>(stage + Config::kKBytes);
    constexpr int kRuns = kHeadDim / 8;
    for (int i = threadIdx.x; i < kTile * kRuns; i += blockDim.x) {
      const int token = i / kRuns, d = i % kRuns * 8;
      const int64_t block = __shfl_sync(kAllLanes, my_block, token >> shift);
      const bool valid = first + token < from.end && first + token >= from.begin && d < dim;
      const int64_t at = block * cache.v_block_stride +
                         ((from.kv_head << shift) + in_block + (token & (size - 1))) * static_cast<int64_t>(dim) + d;
      copy_eight(v + token * Config::kVPitch + d, static_cast<const KV*>(cache.v) + (valid ? at : 0), valid);
    }
  }

  if constexpr (Config::kScaled) {
    // Scales of K's groups, then of V's, two tokens a copy.
    f16* scales = reinterpret_cast<f16*>(stage + Config::kKBytes + Config::kVBytes);
    const int groups = static_cast<int>(cache.groups());
    for (int i = threadIdx.x; i < Config::kGroups * kTile; i += blockDim.x) {
      const int token = 2 * i % kTile, row = 2 * i / kTile, group = row % Config::kGroups;
      const bool of_k = row < Config::kGroups;
      const int64_t block = __shfl_sync(kAllLanes, my_block, token >> shift);
      const bool valid = first + token < from.end && first + token + 1 >= from.begin && group < groups;
      const int64_t at = block * (of_k ? cache.k_scale_block_stride : cache.v_scale_block_stride) +
                         ((from.kv_head * groups + group) << shift) + in_block + (token & (size - 1));
      cp_async_4(scales + 2 * i, static_cast<const f16*>(of_k ? cache.k_scale : cache.v_scale) + (valid ? at : 0),
                 valid);
    }
  }
}

}  // namespace pybatch::cuda
