// Matrix multiplies by AMX's tiles: an Op (gemm_microkernel.h) whose rows are sixteen rows of activations, with weights
// as they are packed. A step is still a group of four bytes of a column, but only blocks of sixteen are multiplied. The
// last may be short of weights, which are taken as zeros.
#pragma once

#include "cpu/amx.h"
#include "cpu/gemm_microkernel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

// Product: Row, a vector of sixteen sums, and multiply<sum, a, b>(), the instruction.
template <class Product>
struct TileOp {
  static constexpr int kRows = TileShapes::kRows;
  static constexpr int kSteps = 16, kGroupBytes = 64 * kSteps, kStepBytes = 4;
  static constexpr bool kWiden = false;
  struct Tile {
    static constexpr int kMaxRows = 2, kMaxPanels = 4, kMaxSums = 4, kStepWork = 2;
    static constexpr int64_t kBlockSteps = 256, kBlockRows = 256;  // the weights, 32 KiB, stay in the L1 cache
    struct Use : TilesInUse {
      static constexpr TileShapes kShapes{};
      Use() : TilesInUse(kShapes) {}
    };
  };
  struct Sum {
    typename Product::Row row[kRows];
  };
  using Widened = TileOp;

  // Tiles 0 to 3 are the sums, 4 and 5 a group's activations, 6 and 7 its weights.
  template <int kRowTiles, int kPanels>
  static void multiply_tile(const TileArguments& t) {
    constexpr int64_t kSumRow = 64;
    const int64_t x_stride = t.x_stride / kRows;
    auto* sums = static_cast<Sum*>(t.sums);
    for_each_number<kRowTiles * kPanels>([&](auto i) PYBATCH_INLINE_LAMBDA {
      if (t.resume) {
        load_tile<i>(sums + i, kSumRow);
      } else {
        zero_tile<i>();
      }
    });
    auto multiply = [&](const char* x, const char* weight, int64_t panel_stride) PYBATCH_INLINE_LAMBDA {
      for_each_number<kRowTiles>([&](auto r) PYBATCH_INLINE_LAMBDA { load_tile<4 + r>(x + r * t.x_stride, x_stride); });
      for_each_number<kRowTiles * kPanels>([&](auto i) PYBATCH_INLINE_LAMBDA {
        constexpr int p = i / kRowTiles, r = i % kRowTiles;
        if constexpr (r == 0) load_tile<6 + p % 2>(weight + p * panel_stride, 64);
        Product::template multiply<i, 4 + r, 6 + p % 2>();
      });
    };
    const char *x = t.x, *weight = t.weight;
    WeightFetch<TileOp, kPanels> fetch(t);
    for (int64_t group = t.steps / kSteps; group > 0; --group) {
      multiply(x, weight, t.panel_stride);
      fetch.next(weight, group);
      x += kSteps * kStepBytes;
      weight += kGroupBytes;
    }
    if (const int64_t left = t.steps % kSteps; left > 0) {
      alignas(64) char last[kPanels * kGroupBytes] = {};
      for (int p = 0; p < kPanels; ++p) std::memcpy(last + p * kGroupBytes, weight + p * t.panel_stride, left * 64);
      multiply(x, last, kGroupBytes);
    }
    for_each_number<kRowTiles * kPanels>([&](auto i) PYBATCH_INLINE_LAMBDA { store_tile<i>(sums + i, kSumRow); });
  }
};

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
