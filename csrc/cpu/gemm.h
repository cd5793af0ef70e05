// The blocked matrix multiply under every matmul: register tiles of rows by panels, K in blocks that stay in cache,
// threads over panels and, where there are many rows, row ranges too (Goto & van de Geijn 2008, with B packed ahead).
//
// A sum starts at zero and adds its products one step of K after another. Tiles, blocks and threads only decide which
// sums are computed together; a block that ends mid-K stores its sums unrounded. So they never change a bit.
//
// Weights are read from memory once, ahead of use. Where several tiles take a block, the next is prefetched to the L2
// cache meanwhile, each of them fetching a part. Where one tile does, each panel is prefetched a little ahead to the L1
// cache, and at its end the beginning of the one that is next in its place. (Measured on a Sapphire Rapids: fp32 from
// memory 1.3 to 1.4 times as fast as by the whole next block, bf16 1.2, int8 1.05; from the L3 cache 1 to 1.06.)
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

#include "cpu/activation_lanes.h"
#include "cpu/norm_rows.h"
#include "cpu/vec.h"
#include "pybatch/matmul.h"
#include "pybatch/parallel.h"

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

#if defined(PYBATCH_ISA_PORTABLE)
constexpr int kUnrolledSteps = 1;  // of weights that are widened: a vector is many instructions here
#else
constexpr int kUnrolledSteps = 8;
#endif

constexpr int64_t kNear = 8192;              // bytes, of all panels of a tile, between what is used and what is fetched
constexpr int64_t kLeastSteps = 16;          // in multiples of which, and of whole groups, blocks are cut
constexpr int64_t kMinRows = 32;             // rows that are worth another pass over the weights
constexpr int64_t kRowWorkPerThread = 8192;  // activations to prepare that are worth waking a thread for
constexpr int64_t kWorkPerThread = 20'000;   // tile steps (of kStepWork 1) that are worth waking a thread for

constexpr float kSmallestNormal = 0x1p-126f;  // of the scale of quantised activations

// Which scratch buffer holds what.
enum Scratch { kActivations, kRowScales, kSums, kWidened, kNormed, kParts, kProducts };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Where the rows of an expert begin, where tiles take row_size rows together and none may take two experts'.
inline int64_t first_row(const Experts& experts, int64_t expert, int64_t row_size) {
  return ceil_div(experts.starts[expert] + expert * (row_size - 1), row_size) * row_size;
}
// Rows that those of p take, of which row_size are together.
constexpr int64_t laid_out_rows(const MatmulParams& p, int64_t row_size) {
  return ceil_div(p.m + p.experts.count * (row_size - 1), row_size) * row_size;
}
// Rows that have one weight: the mean, where experts have some.
inline int64_t rows_together(const MatmulParams& p) {
  if (p.experts.count == 0) return p.m;
  int64_t used = 0;
  for (int64_t e = 0; e < p.experts.count; ++e) used += p.experts.starts[e + 1] > p.experts.starts[e];
  return p.m / max(used, 1);
}

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

struct Gemm {
  const MatmulParams& p;
  const void* x;         // p.x as the Op takes it
  int64_t x_stride;      // bytes from row to row
  int64_t panel_stride;  // bytes from panel to panel of p.weight
  int64_t steps;
  int64_t row_size = 1;  // rows of p.out that a row of x makes

  int64_t m() const { return ceil_div(p.m, row_size); }
  int64_t panels() const { return ceil_div(p.n, kPanel); }
  int64_t together() const { return is_gated(p.epilogue) ? 2 : 1; }  // panels that `finish` needs at once
};

// Prefetches the part of p.out that a tile is about to write: with many rows, most of it is no longer in the caches.
inline void fetch_output(const Gemm& g, int64_t row, int64_t rows, int64_t panel, int64_t panels) {
  const Matrix& out = g.p.out;
  const int64_t bytes = size_of(out.dtype), width = panels * kPanel / g.together() * bytes;
  const int64_t first = row * g.row_size, end = min(first + rows * g.row_size, g.p.m);
  const char* at =
      static_cast<const char*>(out.data) + (first * out.row_stride + panel * kPanel / g.together()) * bytes;
  for (int64_t r = first; r < end; ++r, at += out.row_stride * bytes) {
    for (int64_t b = 0; b < width; b += 64) __builtin_prefetch(at + b, 1);
  }
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

// Whether tiles may be fetched for near at hand. Where not, none of it is compiled: that would take registers.
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

// One panel's weights as Op::Widened takes them.
template <class Op>
void widen(const char* weight, int64_t steps, typename Op::W* out) {
  for (; steps >= Op::kSteps; steps -= Op::kSteps, weight += Op::kGroupBytes, out += Op::kSteps) {
#pragma GCC unroll kUnrolledSteps
    for (int s = 0; s < Op::kSteps; ++s) out[s] = Op::weight(weight, s);
  }
  for (int s = 0; s < steps; ++s) out[s] = Op::weight(weight, s);
}

// Multiplies rows by panels, on the calling thread; `more`: the panels after them are next. finish(params, panel,
// panels, row, rows, sums) takes complete sums, [panels][rows] of Op::Sum.
template <class Op, class Finish>
void multiply_block(const Gemm& g, int64_t row, int64_t rows, int64_t panel, int64_t panels, bool more,
                    const Finish& finish) {
  using Sum = typename Op::Sum;
  constexpr int64_t kMaxRows = Op::Tile::kMaxRows;
  int64_t tiles = tiles_of<typename Op::Tile>(rows);
  constexpr int64_t kBlockSteps = Op::Tile::kBlockSteps;
  bool widened = false;
  if constexpr (Op::kWiden) widened = rows >= Op::Tile::kWidenRows;
  bool park = g.steps > kBlockSteps && (tiles > 1 || widened);
  // Blocks of one size: while one is multiplied, as much as it has is fetched.
  constexpr int64_t kCut = max(kLeastSteps, Op::kSteps);
  int64_t block = park ? ceil_div(ceil_div(g.steps, ceil_div(g.steps, kBlockSteps)), kCut) * kCut : g.steps;
  auto* sums =
      static_cast<Sum*>(thread_scratch(kSums, (park ? rows : kMaxRows) * panels * static_cast<int64_t>(sizeof(Sum))));
  int64_t k = 0;
  do {
    bool last = k + block >= g.steps;
    int64_t done = k / Op::kSteps * Op::kGroupBytes;
    TileArguments t;
    t.x_stride = g.x_stride;
    t.weight = static_cast<const char*>(g.p.weight) + panel * g.panel_stride + done;
    t.panel_stride = g.panel_stride;
    t.steps = last ? g.steps - k : block;
    t.resume = k > 0;
    t.ahead = !last ? block / Op::kSteps * Op::kGroupBytes : more ? panels * g.panel_stride - done : 0;
    t.fetch_every = tiles;
    t.near = kMayBeNear<Op> && tiles == 1;
    t.turn = t.jump = 0;
    if (t.near) {
      const int64_t at_once = min(panels, min(Op::Tile::kMaxSums / rows, Op::Tile::kMaxPanels));
      t.ahead = min(kNear / at_once, g.panel_stride) / 64 * 64;
      t.turn = min(t.ahead / Op::kGroupBytes, t.steps / Op::kSteps);
      t.jump = more || panels > at_once ? (at_once - 1) * g.panel_stride : 0;
    }
    if constexpr (Op::kWiden) {
      if (widened) {
        using W = typename Op::W;
        auto* wide = static_cast<W*>(thread_scratch(kWidened, panels * block * static_cast<int64_t>(sizeof(W))));
        for (int64_t p = 0; p < panels; ++p) widen<Op>(t.weight + p * g.panel_stride, t.steps, wide + p * block);
        t.weight = reinterpret_cast<const char*>(wide);
        t.panel_stride = block * static_cast<int64_t>(sizeof(W));
        t.ahead = 0;  // widening itself reads ahead
      }
    }
    for (int64_t i = 0; i < tiles; ++i) {  // rows in even shares: 7 rows are 4 + 3, not 6 + 1
      int64_t begin = rows * i / tiles, count = rows * (i + 1) / tiles - begin;
      t.x = static_cast<const char*>(g.x) + (row + begin) * g.x_stride + k * Op::kStepBytes;
      t.fetch_first = t.ahead != 0 ? i : t.steps;
      Sum* tile_sums = park ? sums + begin * panels : sums;
      const int64_t most = min(Op::Tile::kMaxSums / count, Op::Tile::kMaxPanels);
      if (last) fetch_output(g, row + begin, count, panel, panels);
      TileArguments part = t;
      for (int64_t p = 0, at_once; p < panels; p += at_once) {
        at_once = min(panels - p, most);
        part.weight = t.weight + p * t.panel_stride;
        part.sums = tile_sums + p * count;
        tile_function<Op>(count, at_once, widened)(part);
      }
      if (last) finish(g.p, panel, panels, row + begin, count, static_cast<const Sum*>(tile_sums));
    }
    k += block;
  } while (k < g.steps);
}

template <class Op, class Finish>
void gemm(const Gemm& g, const Finish& finish) {
  const int64_t m = g.m(), panels = g.panels(), together = g.together();
  if (m == 0 || panels == 0) return;
  int64_t tile_rows = ceil_div(m, tiles_of<typename Op::Tile>(m));
  int64_t tile_panels = min(Op::Tile::kMaxSums / tile_rows, Op::Tile::kMaxPanels);
  int64_t groups = panels / together, block_groups = max(tile_panels / together, 1);
  // Ranges of rows: small enough to store their sums, and more of them where there are too few panels for the threads.
  int64_t wanted = ceil_div(4 * num_threads(), groups);
  int64_t ranges = max(ceil_div(m * g.row_size, Op::Tile::kBlockRows), min(wanted, m * g.row_size / kMinRows));
  int64_t work = together * (g.steps * Op::Tile::kStepWork + 1) * (m / ranges + 3);
  parallel_for(ranges * groups, ceil_div(kWorkPerThread, work), block_groups, [&](const Piece& piece) {
    [[maybe_unused]] const typename Op::Tile::Use use;
    for (int64_t unit = piece.begin, end = piece.end; unit < end;) {
      int64_t range = unit / groups, group = unit % groups;
      int64_t row = m * range / ranges, rows = m * (range + 1) / ranges - row;
      int64_t count = min(groups - group, end - unit);
      int64_t blocks = ceil_div(count, block_groups);
      for (int64_t i = 0; i < blocks; ++i) {
        int64_t first = group + count * i / blocks, last = group + count * (i + 1) / blocks;
        multiply_block<Op>(g, row, rows, first * together, (last - first) * together,
                           i + 1 < blocks || (end < piece.limit && group + count < groups), finish);
      }
      unit += count;
    }
  });
}

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

// ---- what the matmuls share before and after ----

namespace {

template <class Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

// Calls f(row, its activations) for every row of the product, in parallel; with p.norm, the row normalised. Rows are
// counted as those that take kRows together are laid out.
template <int kRows, class F>
void for_each_row(const MatmulParams& p, const F& f) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    parallel_for(p.m, ceil_div(kRowWorkPerThread, p.k + 1), [&](int64_t row, int64_t end) {
      for (int64_t expert = 0; row < end; ++row) {
        const int64_t token = p.experts.tokens != nullptr ? p.experts.tokens[row] : row;
        auto* x = static_cast<const T*>(p.x.data) + token * p.x.row_stride;
        if (p.norm != nullptr) {
          auto* normed = static_cast<T*>(thread_scratch(kNormed, p.k * static_cast<int64_t>(sizeof(T))));
          rms_norm_row(x, static_cast<const T*>(p.norm), p.norm_eps, normed, p.k);
          x = normed;
        }
        if (p.experts.count == 0) {
          f(row, x);
        } else {
          while (row >= p.experts.starts[expert + 1]) ++expert;
          f(first_row(p.experts, expert, kRows) + row - p.experts.starts[expert], x);
        }
      }
    });
  });
}

// The activations as fp32 rows, in scratch unless they already are.
inline ConstMatrix f32_rows(const MatmulParams& p) {
  if (p.x.dtype == DType::f32 && p.norm == nullptr && p.experts.tokens == nullptr) return p.x;
  int64_t stride = ceil_div(p.k, kLanes) * kLanes;
  if (stride % 1024 == 0) stride += kLanes;  // rows a multiple of 4 KiB apart would share one cache set
  auto* rows = static_cast<float*>(thread_scratch(kActivations, p.m * stride * 4));
  for_each_row<1>(p, [&](int64_t row, auto* x) {
    for (int64_t i = 0; i < p.k; i += kLanes) store(rows + row * stride + i, load_first(x + i, p.k - i));
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

// Writes a tile's complete sums as p.epilogue says. A product is value(its panel's first column)(row, sum) + bias, and
// is rounded to out's type before it is used, as if it had been stored first. Rows past the last of p are left out.
template <class Sum, class Value>
PYBATCH_INLINE void write_tile(const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                               const Sum* sums, const Value& value) {
  with_float_type(p.out.dtype, [&](auto* type) PYBATCH_INLINE_LAMBDA {
    using T = Pointee<decltype(type)>;
    auto product = [&](int64_t i) PYBATCH_INLINE_LAMBDA {  // of panel i, by row
      const int64_t column = (panel + i) * kPanel;
      const F32x16 bias = bias_at(p, column);
      const Sum* panel_sums = sums + i * rows;
      return [=, of_row = value(column)](int64_t r)
                 PYBATCH_INLINE_LAMBDA { return rounded_to<T>(of_row(row + r, panel_sums[r]) + bias); };
    };
    auto write = [&](int64_t column, const auto& result) PYBATCH_INLINE_LAMBDA {
      const int64_t stride = p.out.row_stride, left = p.width - column, end = min(rows, p.m - row);
      T* out = static_cast<T*>(p.out.data) + row * stride + column;
      if (left >= kLanes) {
        for (int64_t r = 0; r < end; ++r, out += stride) store(out, result(r, load(out)));
      } else {
        for (int64_t r = 0; r < end; ++r, out += stride) store_first(out, result(r, load_first(out, left)), left);
      }
    };
    auto write_gated = [&](const auto& activation) PYBATCH_INLINE_LAMBDA {
      for (int64_t i = 0; i < panels; i += 2) {
        auto gate = product(i), up = product(i + 1);
        write((panel + i) / 2 * kPanel,
              [=](int64_t r, F32x16) PYBATCH_INLINE_LAMBDA { return activation(gate(r)) * up(r); });
      }
    };
    switch (p.epilogue) {
      case Epilogue::store:
        for (int64_t i = 0; i < panels; ++i) {
          write((panel + i) * kPanel, [of = product(i)](int64_t r, F32x16) PYBATCH_INLINE_LAMBDA { return of(r); });
        }
        break;
      case Epilogue::add:
        for (int64_t i = 0; i < panels; ++i) {
          write((panel + i) * kPanel,
                [of = product(i)](int64_t r, F32x16 out) PYBATCH_INLINE_LAMBDA { return out + of(r); });
        }
        break;
      case Epilogue::silu_mul: write_gated([](F32x16 x) PYBATCH_INLINE_LAMBDA { return silu(x); }); break;
      case Epilogue::gelu_tanh_mul: write_gated([](F32x16 x) PYBATCH_INLINE_LAMBDA { return gelu_tanh(x); }); break;
    }
  });
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
