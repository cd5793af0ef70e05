// The blocked matrix multiply under every matmul: register tiles of rows by panels, K in blocks that stay in cache,
// threads over panels and, where there are many rows, row ranges too (Goto & van de Geijn 2008, with B packed ahead).
//
// A sum starts at zero and takes in its products one step of K after another. Tiles, blocks and threads only decide
// which sums are worked on together; a block that ends mid-K parks its sums unrounded. So they never change a bit.
//
// An Op says what a step is:
//   Sum, X, W       registers: 16 running sums; one row's activations of a step, broadcast; one panel's weights of it
//   kSteps          steps in one group of packed weights
//   kGroupBytes     bytes of a group; a panel's groups lie one after the other
//   kStepBytes      bytes of one row's activations of a step
//   activation(p), weight(group, step), multiply_add(x, w, sum)
#pragma once

#include <type_traits>

#include "cpu/vec.h"
#include "pybatch/matmul.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

// What fits the registers: sums, one step's weights and one row's activations.
#if defined(PYBATCH_ISA_AVX512)
constexpr int kMaxRows = 6, kMaxPanels = 4, kMaxSums = 24;
#elif defined(PYBATCH_ISA_AVX2)
constexpr int kMaxRows = 6, kMaxPanels = 4, kMaxSums = 6;
#else
constexpr int kMaxRows = 4, kMaxPanels = 1, kMaxSums = 4;
#endif

constexpr int64_t kBlockSteps = 512;        // of K in one block: its weights, at most 128 KiB, stay in the L2 cache
constexpr int64_t kBlockRows = 256;         // rows whose sums are parked between blocks
constexpr int64_t kMinRows = 32;            // rows that are worth another pass over the weights
constexpr int64_t kWidenTiles = 4;          // tiles that pay for widening weights to fp32 once, before them
constexpr int64_t kWorkPerThread = 20'000;  // tile steps that are worth waking a thread for

// Which scratch buffer holds what.
enum Scratch { kActivations, kRowScales, kSums, kWidened };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

struct Gemm {
  const void* x;
  int64_t x_stride;  // bytes from row to row
  const void* weight;
  int64_t panel_stride;  // bytes from panel to panel
  int64_t m, panels, steps;
};

struct Tile {
  const char* x;
  int64_t x_stride;
  const char* weight;
  int64_t panel_stride;
  int64_t steps;
  bool resume;  // go on from the sums, do not start at zero
  void* sums;   // [rows][panels] Sum
};

using TileFunction = void (*)(const Tile&);

template <class Op, int kRows, int kPanels>
void multiply_tile(const Tile& t) {
  using Sum = typename Op::Sum;
  Sum sum[kRows][kPanels];
  Sum* parked = static_cast<Sum*>(t.sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) sum[r][p] = t.resume ? parked[r * kPanels + p] : Sum{};
  }
  const char* x = t.x;
  const char* weight = t.weight;
  auto step = [&](int s) __attribute__((always_inline)) {
    typename Op::W w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) w[p] = Op::weight(weight + p * t.panel_stride, s);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      typename Op::X a = Op::activation(x + r * t.x_stride + s * Op::kStepBytes);
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) sum[r][p] = Op::multiply_add(a, w[p], sum[r][p]);
    }
  };
  for (int64_t group = t.steps / Op::kSteps; group > 0; --group) {
#pragma GCC unroll 4
    for (int s = 0; s < Op::kSteps; ++s) step(s);
    x += Op::kSteps * Op::kStepBytes;
    weight += Op::kGroupBytes;
  }
  for (int s = 0; s < t.steps % Op::kSteps; ++s) step(s);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) parked[r * kPanels + p] = sum[r][p];
  }
}

template <class Op, int kRows = kMaxRows, int kPanels = kMaxPanels>
TileFunction tile_function(int64_t rows, int64_t panels) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_function<Op, kRows - 1, kPanels>(rows, panels);
  }
  if constexpr (kPanels > 1) {
    if (panels < kPanels || kRows * kPanels > kMaxSums) return tile_function<Op, kRows, kPanels - 1>(rows, panels);
  }
  if constexpr (kRows * kPanels <= kMaxSums) return multiply_tile<Op, kRows, kPanels>;
}

// One panel's weights as fp32, [steps][16].
template <class Op>
void widen(const char* weight, int64_t steps, float* out) {
  for (int64_t k = 0; k < steps; ++k) {
    store(out + k * kPanel, Op::weight(weight + k / Op::kSteps * Op::kGroupBytes, k % Op::kSteps));
  }
}

// Multiplies rows by panels, on the calling thread. finish(panel, panels, row, rows, sums) takes complete sums,
// [rows][panels] of Op::Sum.
template <class Op, class Finish>
void multiply_block(const Gemm& g, int64_t row, int64_t rows, int64_t panel, int64_t panels, const Finish& finish) {
  using Sum = typename Op::Sum;
  int64_t tiles = ceil_div(rows, kMaxRows);
  bool park = g.steps > kBlockSteps && tiles > 1;
  int64_t block = park ? kBlockSteps : g.steps;
  auto* sums =
      static_cast<Sum*>(thread_scratch(kSums, (park ? rows : kMaxRows) * panels * static_cast<int64_t>(sizeof(Sum))));
  int64_t k = 0;
  do {
    bool last = k + block >= g.steps;
    Tile t;
    t.x_stride = g.x_stride;
    t.weight = static_cast<const char*>(g.weight) + panel * g.panel_stride + k / Op::kSteps * Op::kGroupBytes;
    t.panel_stride = g.panel_stride;
    t.steps = last ? g.steps - k : block;
    t.resume = k > 0;
    bool widened = Op::kWiden && tiles >= kWidenTiles;
    if constexpr (Op::kWiden) {
      if (widened) {
        auto* wide = static_cast<float*>(thread_scratch(kWidened, panels * block * kPanel * 4));
        for (int64_t p = 0; p < panels; ++p) {
          widen<Op>(t.weight + p * g.panel_stride, t.steps, wide + p * block * kPanel);
        }
        t.weight = reinterpret_cast<const char*>(wide);
        t.panel_stride = block * kPanel * 4;
      }
    }
    for (int64_t i = 0; i < tiles; ++i) {  // rows in even shares: 7 rows are 4 + 3, not 6 + 1
      int64_t begin = rows * i / tiles, count = rows * (i + 1) / tiles - begin;
      t.x = static_cast<const char*>(g.x) + (row + begin) * g.x_stride + k * Op::kStepBytes;
      t.sums = park ? sums + begin * panels : sums;
      (widened ? tile_function<typename Op::Widened>(count, panels) : tile_function<Op>(count, panels))(t);
      if (last) finish(panel, panels, row + begin, count, static_cast<const Sum*>(t.sums));
    }
    k += block;
  } while (k < g.steps);
}

template <class Op, class Finish>
void gemm(const Gemm& g, const Finish& finish) {
  if (g.m == 0 || g.panels == 0) return;
  int64_t tile_rows = min(g.m, kMaxRows);
  int64_t tile_panels = min(kMaxSums / tile_rows, kMaxPanels);
  // Ranges of rows: small enough to park their sums, and more of them where panels are too few for the threads.
  int64_t wanted = ceil_div(4 * executor().num_threads(), g.panels);
  int64_t ranges = max(ceil_div(g.m, kBlockRows), min(wanted, g.m / kMinRows));
  int64_t grain = ceil_div(kWorkPerThread, (g.steps + 1) * (g.m / ranges + 3));
  parallel_for(ranges * g.panels, grain, [&](int64_t unit, int64_t end) {
    while (unit < end) {
      int64_t range = unit / g.panels, panel = unit % g.panels;
      int64_t row = g.m * range / ranges, rows = g.m * (range + 1) / ranges - row;
      int64_t panels = min(g.panels - panel, end - unit);
      int64_t blocks = ceil_div(panels, tile_panels);
      for (int64_t i = 0; i < blocks; ++i) {
        int64_t first = panels * i / blocks, count = panels * (i + 1) / blocks - first;
        multiply_block<Op>(g, row, rows, panel + first, count, finish);
      }
      unit += panels;
    }
  });
}

// ---- fp32 sums: Weight is how they lie in memory ----

template <class Weight>
struct FloatOp {
  using Sum = F32x16;
  using X = F32x16;
  using W = F32x16;
  using Widened = FloatOp<float>;
  static constexpr int kSteps = 1;
  static constexpr int kGroupBytes = kPanel * sizeof(Weight);
  static constexpr int kStepBytes = 4;
  static constexpr bool kWiden = sizeof(Weight) < 4;
  static PYBATCH_INLINE X activation(const char* p) { return broadcast(*reinterpret_cast<const float*>(p)); }
  static PYBATCH_INLINE W weight(const char* group, int) { return load(reinterpret_cast<const Weight*>(group)); }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) { return fma(x, w, sum); }
};

// ---- what the matmuls share before and after ----

template <class Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

// x as fp32 rows, converted into scratch unless it lies so already.
inline ConstMatrix to_f32(const ConstMatrix& x, int64_t m, int64_t k) {
  if (x.dtype == DType::f32) return x;
  int64_t stride = ceil_div(k, kLanes) * kLanes;
  if (stride % 1024 == 0) stride += kLanes;  // rows a multiple of 4 KiB apart would share one cache set
  auto* rows = static_cast<float*>(thread_scratch(kActivations, m * stride * 4));
  with_float_type(x.dtype, [&](auto* type) {
    auto* data = static_cast<const Pointee<decltype(type)>*>(x.data);
    parallel_for(m, ceil_div(65536, k + 1), [&](int64_t row, int64_t end) {
      for (; row < end; ++row) {
        for (int64_t i = 0; i < k; i += kLanes) {
          store(rows + row * stride + i, load_first(data + row * x.row_stride + i, k - i));
        }
      }
    });
  });
  return {rows, stride, DType::f32};
}

// The bias of 16 columns; zeros past the last, and where there is none.
inline F32x16 bias_at(const MatmulParams& p, int64_t column) {
  F32x16 bias = zeros();
  if (p.bias == nullptr) return bias;
  with_float_type(p.bias_dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    bias = load_first(static_cast<const T*>(p.bias) + column, p.n - column);
  });
  return bias;
}

// out = value(panel's first column)(row, sum) + bias, for a tile's complete sums.
template <class Sum, class Value>
PYBATCH_INLINE void write_tile(const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                               const Sum* sums, const Value& value) {
  with_float_type(p.out.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    for (int64_t i = 0; i < panels; ++i) {
      int64_t column = (panel + i) * kPanel;
      F32x16 bias = bias_at(p, column);
      auto of_row = value(column);
      T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride + column;
      for (int64_t r = 0; r < rows; ++r, out += p.out.row_stride) {
        store_first(out, of_row(row + r, sums[r * panels + i]) + bias, p.n - column);
      }
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
