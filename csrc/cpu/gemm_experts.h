// The multiply of gemm.h where rows have experts: each expert's rows are a small matrix of their own.
//
// Work is shared out by what it costs, not by experts: one may have most of the rows, and few rows have a share of
// every thread in the weights that they need.
#pragma once

#include "cpu/gemm_rows.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kProductBytes = 4 << 20;  // of rows to be summed over experts, which should still be in a cache then

// Rows of one expert. All parts' work is numbered in one row: that of its groups of panels begins at `begin`, and each
// takes `work` of it.
struct Part {
  int64_t expert, row, rows;  // as Gemm counts rows
  int64_t begin, work;
};

// The matmul of one expert's rows, which are numbered as they are laid out.
inline MatmulParams of_expert(const MatmulParams& p, int64_t expert, int64_t row_size) {
  const int64_t begin = p.experts.starts[expert], first = first_row(p.experts, expert, row_size);
  MatmulParams q = p;
  q.weight = static_cast<const char*>(p.weight) + expert * p.experts.weight_bytes;
  if (p.scale != nullptr) q.scale = p.scale + expert * p.n;
  if (p.bias != nullptr) q.bias = static_cast<const char*>(p.bias) + expert * p.n * size_of(p.bias_dtype);
  q.out.data = static_cast<char*>(p.out.data) + (begin - first) * p.out.row_stride * size_of(p.out.dtype);
  q.m = first + p.experts.starts[expert + 1] - begin;
  return q;
}

struct Parts {
  const Part* parts;
  int64_t count;
  const Part* end() const { return parts + count; }
  // The last that begins at this work, or before.
  const Part* at(int64_t work) const {
    int64_t low = 0, high = count;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (parts[middle].begin <= work ? low : high) = middle;
    }
    return parts + low;
  }
};

// groups: of panels, that are multiplied. block_rows: the most rows of a part.
inline Parts cut_into_parts(const Gemm& g, int64_t groups, int64_t block_rows) {
  const Experts& experts = g.p.experts;
  const int64_t used = ceil_div(g.p.m, rows_together(g.p)), wanted = ceil_div(4 * num_threads(), groups * used);
  auto* parts = static_cast<Part*>(
      thread_scratch(kParts, (experts.count * (wanted + 1) + g.p.m / block_rows) * static_cast<int64_t>(sizeof(Part))));
  int64_t count = 0, work = 0;
  for (int64_t e = 0; e < experts.count; ++e) {
    const int64_t m = experts.starts[e + 1] - experts.starts[e];
    if (m == 0) continue;
    const int64_t first = first_row(experts, e, g.row_size) / g.row_size, rows = ceil_div(m, g.row_size);
    const int64_t ranges = max(ceil_div(m, block_rows), min(wanted, m / kMinRows));
    for (int64_t i = 0; i < ranges; ++i) {
      const int64_t begin = rows * i / ranges, end = rows * (i + 1) / ranges;
      if (begin == end) continue;
      parts[count++] = {e, first + begin, end - begin, work, end - begin + 3};
      work += (end - begin + 3) * groups;
    }
  }
  return {parts, count};
}

// Multiplies all rows by the panels of some groups.
template <class Op, class Finish>
void multiply_parts(const Gemm& g, int64_t first_group, int64_t groups, const Finish& finish) {
  using Tile = typename Op::Tile;
  const Parts parts = cut_into_parts(g, groups, Tile::kBlockRows);
  const int64_t together = g.together(), all = parts.end()[-1].begin + parts.end()[-1].work * groups;
  const int64_t grain = ceil_div(kWorkPerThread, together * (g.steps * Tile::kStepWork + 1));
  auto groups_at_once = [&](const Part& part) {
    const int64_t tile_rows = ceil_div(part.rows, tiles_of<Tile>(part.rows));
    return max(min(Tile::kMaxSums / tile_rows, Tile::kMaxPanels) / together, 1);
  };
  const int64_t step = parts.parts->work * groups_at_once(*parts.parts);
  parallel_for(all, grain, step, [&](const Piece& piece) {
    [[maybe_unused]] const typename Tile::Use use;
    for (const Part* part = parts.at(piece.begin); part < parts.end() && part->begin < piece.end; ++part) {
      // The groups whose work begins in the piece.
      const int64_t begin = max(ceil_div(piece.begin - part->begin, part->work), 0);
      const int64_t end = min(ceil_div(piece.end - part->begin, part->work), groups), count = end - begin;
      if (count <= 0) continue;
      const MatmulParams p = of_expert(g.p, part->expert, g.row_size);
      const Gemm of_part{p, g.x, g.x_stride, g.panel_stride, g.steps, g.row_size};
      const bool goes_on = end < groups && piece.end < piece.limit;
      const int64_t blocks = ceil_div(count, groups_at_once(*part));
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t first = begin + count * i / blocks, last = begin + count * (i + 1) / blocks;
        multiply_block<Op>(of_part, part->row, part->rows, (first_group + first) * together, (last - first) * together,
                           i + 1 < blocks || goes_on, finish);
      }
    }
  });
}

// Columns of out from those of the product's rows, whose first is `first`.
inline void sum_over_experts(const MatmulParams& p, const void* products, int64_t stride, int64_t first,
                             int64_t columns) {
  const int64_t top_k = p.experts.top_k;
  with_float_type(p.out.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    parallel_for(p.m / top_k, ceil_div(kRowWorkPerThread, columns * top_k), [&](int64_t token, int64_t end) {
      for (; token < end; ++token) {
        const int32_t* places = p.experts.places + token * top_k;
        const float* weights = p.experts.weights + token * top_k;
        T* out = static_cast<T*>(p.out.data) + token * p.out.row_stride + first;
        for (int64_t i = 0; i < columns; i += kLanes) {
          F32x16 sum = zeros();
          for (int64_t j = 0; j < top_k; ++j) {
            const T* product = static_cast<const T*>(products) + places[j] * stride + i;
            sum = fma(broadcast(weights[j]), load_first(product, columns - i), sum);
          }
          sum = rounded_to<T>(sum);
          if (p.epilogue == Epilogue::add) sum = load_first(out + i, columns - i) + sum;
          store_first(out + i, sum, columns - i);
        }
      }
    });
  });
}

// gemm(), of every kind of rows.
template <class Op, class Finish>
void gemm_by_expert(const Gemm& g, const Finish& finish) {
  const MatmulParams& p = g.p;
  if (p.experts.count == 0) return gemm<Op>(g, finish);
  const int64_t groups = g.panels() / g.together();
  if (p.m == 0 || groups == 0) return;
  if (p.experts.places == nullptr) return multiply_parts<Op>(g, 0, groups, finish);
  // A few columns at a time: all rows of them, then their sums.
  const int64_t bytes = size_of(p.out.dtype), fit = kProductBytes / (p.m * kPanel * bytes);
  const int64_t at_once = min(groups, max(fit, Op::Tile::kMaxPanels)), stride = at_once * kPanel;
  auto* products = static_cast<char*>(thread_scratch(kProducts, p.m * stride * bytes));
  for (int64_t first = 0; first < groups; first += at_once) {
    const int64_t count = min(at_once, groups - first), column = first * kPanel;
    MatmulParams q = p;
    q.out = {products - column * bytes, stride, p.out.dtype};
    q.epilogue = Epilogue::store;
    multiply_parts<Op>({q, g.x, g.x_stride, g.panel_stride, g.steps, g.row_size}, first, count, finish);
    sum_over_experts(p, products, stride, column, min(count * kPanel, p.width - column));
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
