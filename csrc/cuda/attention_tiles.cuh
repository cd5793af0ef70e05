// K and V tiles of the attention kernel in shared memory, loaded as B operands of the mma.
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
      const uint32_t first = prmt(even, odd, 0x5410), last = prmt(even, odd, 0x7632);
      b[0][i] = widen_lower<T, KV>(first);
      b[1][i] = widen_upper<T, KV>(first);
      b[2][i] = widen_lower<T, KV>(last);
      b[3][i] = widen_upper<T, KV>(last);
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

}  // namespace pybatch::cuda
