// How each kind of packed weight is copied to shared memory and loaded from it as the A operand of the mma: weights are
// the rows, tokens the columns of the product, so that few tokens waste little.
//
// A slab is 64 bytes of a row of x, a step its half. Lane 4 g + t holds bytes 8 t to 8 t + 7 of a step of row g as the
// B operand of an mma. This permutes K within a step, and the weights alike.
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

// Groups of four bytes of a column: sixteen bytes are a group of four neighbouring columns. Column 4 g + 2 i + h is row
// g + 8 h of tile i.
__device__ __forceinline__ int column_of_group(int tile, int half, int g) { return 4 * g + 2 * tile + half; }

template <class W, int kGroups, bool kBlocks = false>  // the weights' type, and groups that a lane takes of a slab
struct Panels {
  static constexpr bool kInBlocks = kBlocks;
  static constexpr int kWeightBytes = sizeof(W);
  static constexpr size_t kBytes = kGroups * kWarp * 16;

  static __device__ __forceinline__ int64_t bytes_of_panel(int64_t k) { return panel_bytes(k, sizeof(W), kInBlocks); }
  // Where what is so many bytes of weights from a panel's first lies in it.
  static __device__ __forceinline__ int64_t place_in_panel(int64_t offset) {
    return kInBlocks ? past_scales(offset) : offset;
  }
  // Which of a slab's groups is the i-th of lane 4 g + t.
  static __host__ __device__ __forceinline__ constexpr int group_of_lane(int i, int t) {
    constexpr int kEach = kGroups / 2;  // of a step
    return (i / kEach * 4 + t) * kEach + i % kEach;
  }
  // Which of them it loads as its i-th: half of the lanes load the second of a step first, so that fewer meet in a bank
  // where weights lie as packed.
  static __host__ __device__ __forceinline__ constexpr int turned(int i, int t) { return kGroups == 4 ? i ^ t % 2 : i; }
  // Where sixteen bytes of a slab of both panels lie in shared memory: eight lanes copy 128 bytes that lie together,
  // and eight load from four such lines two of each. Neither meet in a bank if a line's place in four turns its inside.
  static __host__ __device__ __forceinline__ constexpr int place(int i) { return i ^ i / 8 % 4 * 2; }
  static __host__ __device__ __forceinline__ constexpr int place_of_group(int i, int lane) {  // that of a lane
    const int t = lane % 4;
    return place((lane / 16 * 4 * kGroups + group_of_lane(turned(i, t), t)) * 4 + lane / 4 % 4);
  }
  static __device__ __forceinline__ void copy(char* to, const WarpWeights& w, int64_t slab, int lane) {
    const int64_t first = slab * 4 * kGroups, groups = ceil_div(w.k * kWeightBytes, 4) - first;
    const char* from = w.data + place_in_panel(first * (kPanel * 4)) + lane * 16;
    to += place(lane) * 16;
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {  // half of them of either panel
      const int panel = i / (kGroups / 2), group = i % (kGroups / 2) * 8;
      const bool valid = group + lane / 4 < groups && panel < w.panels;
      cp_async_16(to + i * kWarp * 16, valid ? from + panel * bytes_of_panel(w.k) + group * (kPanel * 4) : w.data,
                  valid);
    }
  }
  // The i-th group that a lane loads, of those that were copied.
  static __device__ __forceinline__ uint4 group(const char* from, int i, int lane) {
    return reinterpret_cast<const uint4*>(from)[place_of_group(i, lane)];
  }
  // Groups that are operands as they are: two to a step. get(i) is the i-th that lane 4 g + t loads. The choice between
  // two also keeps ptxas from moving an operand's words to neighbouring registers before each mma again.
  template <class Get>
  static __device__ __forceinline__ void load(Operand& a, const Get& get, int t) {
    static_assert(kGroups == 4);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 x = get(2 * step), y = get(2 * step + 1);
      const uint32_t first[4] = {x.x, x.y, x.z, x.w}, second[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[step][j / 2][j % 2] = t % 2 == 0 ? first[j] : second[j];
        a[step][j / 2][j % 2 + 2] = t % 2 == 0 ? second[j] : first[j];
      }
    }
  }
  static __device__ __forceinline__ int column(int tile, int half, int g) { return column_of_group(tile, half, g); }
};

// int8 or e4m3 weights widened to the type of x.
template <class T, class W, bool kBlocks = false>
struct WidenedWeights : Panels<W, 2, kBlocks> {
  using X = T;
  using Sum = float;

  template <class Get>
  static __device__ __forceinline__ void load(Operand& a, const Get& get, int) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 words = get(step);
      const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        a[step][j / 2][j % 2] = widen_pair<T, W>(word[j], false);
        a[step][j / 2][j % 2 + 2] = widen_pair<T, W>(word[j], true);
      }
    }
  }
  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<T>::multiply(d, a, b);
  }
};

// int8 weights against int8 activations.
struct Int8Weights : Panels<int8_t, 4> {
  using X = int8_t;
  using Sum = int32_t;

  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_m16n8k32_s8(d, a, b);
  }
};

// 16-bit weights against activations of their type.
template <class T>
struct DenseWeights : Panels<T, 4> {
  using X = T;
  using Sum = float;

  static __device__ __forceinline__ void multiply(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Mma<T>::multiply(d, a, b);
  }
};

}  // namespace pybatch::cuda
