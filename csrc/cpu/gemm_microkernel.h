// The micro-kernel of gemm.h: a tile of rows by panels, whose sums stay in registers while it runs through K.
//
// An Op says what a step is:
//   Tile            the largest tile, and the blocks that are cut for it
//   Sum, X, W       registers: 16 running sums; one row's activations of a step, broadcast; one panel's weights of it
//   kSteps          steps in one group of packed weights
//   kGroupBytes     bytes of a group; a panel's groups are contiguous
//   kStepBytes      bytes of one row's activations of a step
//   activation(p), weight(group, step), multiply_add(x, w, sum)
// and perhaps, for tiles of one panel,
//   kTurns, multiply_add<rows>(X*, w, Sum*)   the same for up to kTurns rows at once
// or, where a tile is no matter of vectors, `multiply_tile<rows, panels>(arguments)` in place of the last line and X,
// W.
#pragma once

#include <type_traits>

#include "cpu/vec.h"
#include "pybatch/matmul.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

struct VectorTile {
  static constexpr int64_t kBlockSteps = 512;  // of K in one block: its weights, at most 128 KiB, stay in the L2 cache
  static constexpr int64_t kBlockRows = 256;   // whose sums are stored between blocks
  struct Use {};  // lives as long as a thread multiplies tiles: registers that have to be asked for
};

// What fits the registers: sums, one step's weights and one row's activations. From kWidenRows on weights are widened
// once beforehand, where an Op does so.
#if defined(PYBATCH_ANY_AVX512)
struct StepTile : VectorTile {
  static constexpr int kMaxRows = 12, kMaxPanels = 4, kMaxSums = 24, kStepWork = 1, kWidenRows = 19;
  // Tiles of 12 rows and 2 panels, whose weights, 32 KiB, stay in the L1 cache, and rows and sums in the L2 cache.
  static constexpr int64_t kBlockSteps = 256, kBlockRows = 96;
};
struct BlockTile : VectorTile {  // for steps of 32 weights a column
  static constexpr int kMaxRows = 16, kMaxPanels = 1, kMaxSums = 16, kStepWork = 8, kWidenRows = 7;
};
#elif defined(PYBATCH_ANY_AVX2)
struct StepTile : VectorTile {
  static constexpr int kMaxRows = 6, kMaxPanels = 4, kMaxSums = 6, kStepWork = 1, kWidenRows = 19;
};
struct BlockTile : VectorTile {
  static constexpr int kMaxRows = 8, kMaxPanels = 1, kMaxSums = 8, kStepWork = 8, kWidenRows = 3;
};
#elif defined(PYBATCH_ANY_NEON)
struct StepTile : VectorTile {  // a sum is four of 32 registers
  static constexpr int kMaxRows = 6, kMaxPanels = 4, kMaxSums = 6, kStepWork = 1, kWidenRows = 19;
};
struct BlockTile : VectorTile {
  static constexpr int kMaxRows = 8, kMaxPanels = 1, kMaxSums = 8, kStepWork = 8, kWidenRows = 3;
};
#else
struct StepTile : VectorTile {
  static constexpr int kMaxRows = 4, kMaxPanels = 1, kMaxSums = 4, kStepWork = 1, kWidenRows = 13;
};
struct BlockTile : VectorTile {
  static constexpr int kMaxRows = 4, kMaxPanels = 1, kMaxSums = 4, kStepWork = 8, kWidenRows = 2;
};
#endif

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Tiles for so many rows. Weights pass from memory to the core once for each.
template <class Tile>
constexpr int64_t tiles_of(int64_t rows) {
  return ceil_div(rows, Tile::kMaxRows);
}

// The fewest rows of a tile of weights that have been widened.
template <class Tile>
constexpr int least_widened_rows() {
  int64_t least = Tile::kMaxRows;
  for (int64_t rows = Tile::kWidenRows; rows <= Tile::kWidenRows + 2 * Tile::kMaxRows; ++rows) {
    least = min(least, rows / tiles_of<Tile>(rows));
  }
  return static_cast<int>(least);
}

struct TileArguments {
  const char* x;
  int64_t x_stride;
  const char* weight;
  int64_t panel_stride;
  int64_t steps;
  bool resume;  // continue from the sums instead of zero
  void* sums;   // [panels][rows] Sum
  // What is prefetched: every `fetch_every`-th group, `ahead` bytes further on; beside the last `turn` groups `jump`
  // more.
  int64_t ahead, fetch_first, fetch_every, turn, jump;
  bool near;  // to the L1 cache
};

using TileFunction = void (*)(const TileArguments&);

constexpr int64_t kNear = 8192;  // bytes, of all panels of a tile, between what is used and what is fetched

// Whether weights may be fetched so near ahead. Where not, it is not compiled, which would take registers.
template <class Op>
constexpr bool kMayBeNear = Op::Tile::kMaxPanels > 1 && Op::kGroupBytes <= kNear / 8;

// Prefetches as the arguments say.
template <class Op, int kPanels>
class WeightFetch {
 public:
  explicit PYBATCH_INLINE WeightFetch(const TileArguments& t) : t(t), ahead(t.ahead), until(t.fetch_first) {}

  // Beside a group of weights; left: groups to come, with this one.
  PYBATCH_INLINE void next(const char* weight, int64_t left) {
    if (kMayBeNear<Op> && left == t.turn) ahead += t.jump;
    if (until-- != 0) return;
    until = t.fetch_every - 1;
    if (kMayBeNear<Op> && t.near) {
      fetch<3>(weight);
    } else {
      fetch<2>(weight);
    }
  }

 private:
  template <int kLocality>
  PYBATCH_INLINE void fetch(const char* weight) const {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const char* line = weight + p * t.panel_stride + ahead;
      for (int b = 0; b < Op::kGroupBytes; b += 64) __builtin_prefetch(line + b, 0, kLocality);
    }
  }

  const TileArguments& t;
  int64_t ahead, until;
};

template <class Op, int kRows, int kPanels>
void multiply_tile(const TileArguments& t) {
  using Sum = typename Op::Sum;
  Sum sum[kRows][kPanels];
  Sum* parked = static_cast<Sum*>(t.sums);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) sum[r][p] = t.resume ? parked[p * kRows + r] : Sum{};
  }
  constexpr int kBases = (kRows + 3) / 4;  // with one address for all rows, their offsets would spill
  const char* x[kBases];
  for (int i = 0; i < kBases; ++i) {
    x[i] = t.x + 4 * i * t.x_stride;
    asm("" : "+r"(x[i]));  // keeps the compiler from merging them
  }
  const char* weight = t.weight;
  WeightFetch<Op, kPanels> fetch(t);
  auto step = [&](int s) __attribute__((always_inline)) {
    typename Op::W w[kPanels];
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) w[p] = Op::weight(weight + p * t.panel_stride, s);
    auto activation = [&](int r) PYBATCH_INLINE_LAMBDA {
      return Op::activation(x[r / 4] + r % 4 * t.x_stride + s * Op::kStepBytes);
    };
    if constexpr (kPanels == 1 && requires { Op::kTurns; }) {
      auto multiply_add = [&](auto rows, int first) PYBATCH_INLINE_LAMBDA {
        typename Op::X a[rows()];
        for (int i = 0; i < rows(); ++i) a[i] = activation(first + i);
        Op::template multiply_add<rows()>(a, w[0], &sum[first][0]);
      };
      constexpr int kTurns = Op::kTurns, kLast = kRows % kTurns;
#pragma GCC unroll 4
      for (int r = 0; r + kTurns <= kRows; r += kTurns) multiply_add(std::integral_constant<int, kTurns>(), r);
      if constexpr (kLast != 0) multiply_add(std::integral_constant<int, kLast>(), kRows - kLast);
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        typename Op::X a = activation(r);
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) sum[r][p] = Op::multiply_add(a, w[p], sum[r][p]);
      }
    }
  };
  for (int64_t group = t.steps / Op::kSteps; group > 0; --group) {
#pragma GCC unroll 4
    for (int s = 0; s < Op::kSteps; ++s) step(s);
    fetch.next(weight, group);
    for (int i = 0; i < kBases; ++i) {
      x[i] += Op::kSteps * Op::kStepBytes;
      if constexpr (requires { Op::kTurns; }) asm("" : "+r"(x[i]));  // nor from keeping an address for each row
    }
    weight += Op::kGroupBytes;
  }
  for (int s = 0; s < t.steps % Op::kSteps; ++s) step(s);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) parked[p * kRows + r] = sum[r][p];
  }
}

// For kMinRows to kRows rows.
template <class Op, int kMinRows, int kRows, int kPanels = Op::Tile::kMaxPanels>
TileFunction tile_function(int64_t rows, int64_t panels) {
  if constexpr (kRows > kMinRows) {
    if (rows < kRows) return tile_function<Op, kMinRows, kRows - 1, kPanels>(rows, panels);
  }
  constexpr int kMaxSums = Op::Tile::kMaxSums;
  if constexpr (kPanels > 1) {
    if (panels < kPanels || kRows * kPanels > kMaxSums) {
      return tile_function<Op, kMinRows, kRows, kPanels - 1>(rows, panels);
    }
  }
  if constexpr (kRows * kPanels <= kMaxSums) {
    if constexpr (requires { &Op::template multiply_tile<kRows, kPanels>; }) {
      return Op::template multiply_tile<kRows, kPanels>;
    } else {
      return multiply_tile<Op, kRows, kPanels>;
    }
  }
}

// As many rows as a tile may have with weights as they are packed, or widened.
template <class Op>
TileFunction tile_function(int64_t rows, int64_t panels, bool widened) {
  using Tile = typename Op::Tile;
  constexpr int kMaxRows = Tile::kMaxRows;
  if constexpr (Op::kWiden) {
    constexpr int kMinWidened = least_widened_rows<Tile>();
    if constexpr (Tile::kWidenRows == 1) {
      return tile_function<typename Op::Widened, kMinWidened, kMaxRows>(rows, panels);
    } else {
      constexpr int kMaxPacked = kMaxRows < Tile::kWidenRows ? kMaxRows : Tile::kWidenRows - 1;
      return widened ? tile_function<typename Op::Widened, kMinWidened, kMaxRows>(rows, panels)
                     : tile_function<Op, 1, kMaxPacked>(rows, panels);
    }
  } else {
    return tile_function<Op, 1, kMaxRows>(rows, panels);
  }
}

// fp32 sums of weights that are Weight in memory.
//
// ---- fp32 sums: Weight is the type in memory ----
//
// 16-bit weights are widened, also where an instruction takes 16-bit activations with them: ARM's fmlal, bfdot, bfmmla,
// AVX-512's vdpbf16ps. Bits would be a chip's own, for at most twice the speed. AMX's tiles: matmul_dense.cpp.

template <class Weight>
struct FloatOp {
  using Sum = F32x16;
  using X = F32x16;
  using W = F32x16;
  using Tile = StepTile;
  using Widened = FloatOp<float>;
  static constexpr int kSteps = 4 / sizeof(Weight);
  static constexpr int kGroupBytes = kPanel * 4;
  static constexpr int kStepBytes = 4;
  static constexpr bool kWiden = sizeof(Weight) < 4;
  static PYBATCH_INLINE X activation(const char* p) { return broadcast(*reinterpret_cast<const float*>(p)); }
  static PYBATCH_INLINE W weight(const char* group, int step) {
    auto* w = reinterpret_cast<const Weight*>(group);
    if constexpr (kSteps == 1)
      return load(w);
    else
      return load_of_pairs(w, step);
  }
  static PYBATCH_INLINE Sum multiply_add(X x, W w, Sum sum) { return fma(x, w, sum); }
};

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
