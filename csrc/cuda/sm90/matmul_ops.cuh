// How each kind of packed weight becomes the A operand of a wgmma: from shared memory, where it lies as packed, to the
// registers of the warp that multiplies its panel. A step is 32 bytes of a row of x.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/sm90/ptx.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

// Weights in groups of four bytes that are operands as they are: row g of the fragment is column g of the panel. Lanes
// two apart would meet in a bank, so half of them load their second row first.
struct GroupsAsTheyAre {
  static constexpr int kPanelBytes = 32 * kPanel * 4;  // in a stage of 128 bytes of x

  static __device__ __forceinline__ void load(uint32_t (&a)[4], const char* panel, int step, int lane) {
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
};

struct WgmmaInt8 : GroupsAsTheyAre {
  static constexpr bool kInBlocks = false;
  using X = int8_t;
  using Sum = int32_t;
  static constexpr int kWeightBytes = 1;   // of one
  static constexpr int kRows = 256;        // of the large tile: one set of sums in registers
  static constexpr bool kInParts = false;  // the sum over K

  template <int kN>
  static __device__ __forceinline__ void multiply(Sum (&d)[kN / 2], const uint32_t (&a)[4], uint64_t x) {
    wgmma_m64k32_s8<kN>(d, a, x);
  }
};

// Sums of floats: those of a part of K, and their total.
template <class T>
struct WgmmaFloat {
  using X = T;
  using Sum = float;
  static constexpr int kRows = 176;
  static constexpr bool kInParts = true;
  static constexpr bool kInBlocks = false;

  template <int kN>
  static __device__ __forceinline__ void multiply(Sum (&d)[kN / 2], const uint32_t (&a)[4], uint64_t x) {
    if constexpr (std::is_same_v<T, f16>) {
      wgmma_m64k16_f16<kN>(d, a, x);
    } else {
      wgmma_m64k16_bf16<kN>(d, a, x);
    }
  }
};

template <class T>
struct WgmmaDense : WgmmaFloat<T>, GroupsAsTheyAre {
  static constexpr int kWeightBytes = 2;
};

// int8 or e4m3 weights widened to T. A lane takes a pair of a group of four, the lower or the upper one.
template <class T, class W, bool kBlocks = false>
struct WgmmaWidened : WgmmaFloat<T> {
  static constexpr bool kInBlocks = kBlocks;
  static constexpr int kRows = kBlocks ? 128 : 176;  // a third set of sums in registers: a block's
  static constexpr int kWeightBytes = 1;
  static constexpr int kPanelBytes = 16 * kPanel * 4;

  static __device__ __forceinline__ void load(uint32_t (&a)[4], const char* panel, int step, int lane) {
    const int g = lane / 4, t = lane % 4;
    const bool upper = t % 2 != 0;
    const auto* words = reinterpret_cast<const uint32_t*>(panel);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t* group = words + (4 * step + 2 * half + t / 2) * kPanel + g;
      a[2 * half] = widen_pair<T, W>(group[0], upper);
      a[2 * half + 1] = widen_pair<T, W>(group[8], upper);
    }
  }
};

}  // namespace pybatch::cuda
