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
// What a step is, an Op says: gemm_microkernel.h.
#pragma once

#include "cpu/gemm_microkernel.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

#if defined(PYBATCH_ISA_PORTABLE)
constexpr int kUnrolledSteps = 1;  // of weights that are widened: a vector is many instructions here
#else
constexpr int kUnrolledSteps = 8;
#endif

constexpr int64_t kLeastSteps = 16;         // in multiples of which, and of whole groups, blocks are cut
constexpr int64_t kMinRows = 32;            // rows that are worth another pass over the weights
constexpr int64_t kWorkPerThread = 20'000;  // tile steps (of kStepWork 1) that are worth waking a thread for

// Which scratch buffer holds what.
enum Scratch { kActivations, kRowScales, kSums, kWidened, kNormed, kParts, kProducts };

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

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
