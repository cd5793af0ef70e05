// How each kind of packed weight is copied to shared memory and loaded from it as the A operand of the mma: weights are
// the rows, tokens the columns of the product, so that few tokens waste little.
//
// A slab is 64 bytes of a row of x. Lane 4 g + t holds bytes 16 t to 16 t + 15 of row g, which serve as the B operands
// of two mma steps. This permutes a step's K, and the weights alike: step i takes the elements in registers 2 i and
// 2 i + 1 of every lane.
#pragma once

#include "cuda/matmul_config.cuh"
#include "cuda/mma.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

using Operand = uint32_t[2][2][4];  // [mma step][tile of sixteen columns][register]

// The packed weights of the 32 columns of a warp.
struct WarpWeights {
  const char* data;
  int64_t k;       // elements
  int64_t panels;  // of the two, how many there are
};

// int8 panels: sixteen bytes are four neighbouring columns of a group of four k, and come to the lane that needs them.
// Column 4 g + 2 i + h is row g + 8 h of tile i.
__device__ __forceinline__ int int8_column(int tile, int half, int g) { return 4 * g + 2 * tile + half; }

template <int kGroups>  // that a lane takes of a slab
struct Int8Panels {
  static constexpr size_t kBytes = kGroups * kWarp * 16;

  static __device__ __forceinline__ void copy(char* to, const WarpWeights& w, int64_t slab, int lane) {
    const int g = lane / 4, t = lane % 4;
    const int64_t groups = ceil_div(w.k, 4);
    const char* panel = w.data + (g / 4) * (groups + 1) * (kPanel * 4) + g % 4 * 16;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int64_t group = (slab * 4 + t) * kGroups + i;
      const bool valid = group < groups && g / 4 < w.panels;
      cp_async_16(to + (i * kWarp + lane) * 16, valid ? panel + group * (kPanel * 4) : w.data, valid);
    }
  }
  static __device__ __forceinline__ uint4 group(const char* from, int i, int lane) {
    return reinterpret_cast<const uint4*>(from)[i * kWarp + lane];
  }
  static __device__ __forceinline__ int column(int tile, int half, int g) { return int8_column(tile, half, g); }
};

// int8 weights widened to the type of x.
template <class T>
struct WidenedWeights : Int8Panels<2> {
  using X = T;
  using Sum = float;

  static __device__ __forceinline__ void load(Operand& a, const char* from, int lane) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 words = group(from, step, lane);
      const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[step][j / 2][j % 2] = widen_low<T>(word[j]);
        a[step][j / 2][j % 2 + 2] = widen_high<T>(word[j]);
      }
    }
  }
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<T>::multiply(d, a, b);
  }
};

// int8 weights against int8 activations.
struct Int8Weights : Int8Panels<4> {
  using X = int8_t;
  using Sum = int32_t;

  static __device__ __forceinline__ void load(Operand& a, const char* from, int lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 words = group(from, i, lane);
      const int first = i % 2 * 2;
      a[i / 2][0][first] = words.x;
      a[i / 2][0][first + 1] = words.y;
      a[i / 2][1][first] = words.z;
      a[i / 2][1][first + 1] = words.w;
    }
  }
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k32_s8(d, a, b);
  }
};

// 16-bit panels: 32 bytes of sixteen columns a k, read with ldmatrix.trans. Panel i is tile i.
template <class T>
struct DenseWeights {
  using X = T;
  using Sum = float;
  static constexpr int kSlab = kSlabBytes / sizeof(T);
  static constexpr size_t kPanelBytes = kSlab * kPanel * sizeof(T), kBytes = 2 * kPanelBytes;

  // Where the `half`-th eight columns of k are: swizzled, so that the eight k that ldmatrix reads are in different
  // banks.
  static __device__ __forceinline__ int offset(int k, int half) {
    return ((2 * k + half) ^ (k / 8 % 2 * 4) ^ (k / 16)) * 16;
  }
  static __device__ __forceinline__ void copy(char* to, const WarpWeights& w, int64_t slab, int lane) {
#pragma unroll
    for (int i = lane; i < 2 * kSlab * 2; i += kWarp) {
      const int panel = i / (2 * kSlab), k = i / 2 % kSlab, half = i % 2;
      const int64_t row = slab * kSlab + k;
      const bool valid = row < w.k && panel < w.panels;
      const int64_t at = ((panel * w.k + row) * kPanel + half * 8) * static_cast<int64_t>(sizeof(T));
      cp_async_16(to + panel * kPanelBytes + offset(k, half), w.data + (valid ? at : 0), valid);
    }
  }
  static __device__ __forceinline__ void load(Operand& a, const char* from, int lane) {
    const int row = lane % 8, half = lane / 8 % 2, k = row / 2 * 8 + row % 2 + lane / 16 * 2;
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        ldmatrix_x4_trans(a[step][tile], from + tile * kPanelBytes + offset(k + 4 * step, half));
      }
    }
  }
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<T>::multiply(d, a, b);
  }
  static __device__ __forceinline__ int column(int tile, int half, int g) { return 16 * tile + 8 * half + g; }
};

}  // namespace pybatch::cuda
