// What SplitAttention does by AMX's tiles (attention_panel.h).
#pragma once

#include "cpu/attention_split.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Queries as digits, block by block. Those past the depth are zeros.
inline void SplitAttention::split_queries(const Tile& tile) const {
  const bool int4 = p.cache.dtype == DType::i4;
  const int64_t count = head_rows(tile);
  for (int64_t row = 0, rows; row < this->rows(tile); row += rows) {
    rows = rows_at_once(count - row % count);
    uint8_t* digits = work.panels.q + row * q_digit_bytes();
    std::memset(digits, 0, static_cast<size_t>(rows * q_digit_bytes()));
    for (int64_t r = 0; r < rows; ++r) {
      auto store = [&](int64_t i, I32x16 words) PYBATCH_INLINE_LAMBDA {
        const __m128i high = high_digits(words), low = low_digits(words);
        if (!int4) return store_digits(digits, rows, r, i, high, low);
        const int64_t at = i / kInt4Group * kStep + i % kInt4Group;  // a step for each group
        store_digits(digits, rows, r, at, as_int4_keys(high), as_int4_keys(low));
      };
      work.q_scale[row + r] = narrow(work.q + (row + r) * padded_depth, padded_depth, store);
    }
  }
}

template <class T>
void SplitAttention::score_panels(const Tile& tile, const Split<T>& at, const Block& block, Unpacked& unpacked) const {
  const int64_t row = row_of(tile, block, block.head), offset = block.head * head_stride / kElements<T>;
  const uint8_t* digits = work.panels.q + row * q_digit_bytes();
  for (int64_t i = block.columns.begin, width; i < block.columns.end; i += width * kLanes) {
    width = smaller((block.columns.end - i) / kLanes, kColumns);
    const int64_t token = block.first + i;
    int8_t* panel = work.panels.keys + token / kLanes * key_panel_bytes();
    if (const int64_t from = larger(unpacked.keys, token), end = token + width * kLanes; from < end) {
      const T* const* next = at.parts[block.first / kPart<T>].k + (from - block.first) / kGranule + kAhead;
      unpack_keys<T>({at.k + from / kGranule, next, offset}, p.cache.block_size, (end - from) / kLanes, depth,
                     panel + (from - token) / kLanes * key_panel_bytes(), key_panel_bytes());
      unpacked.keys = end;
    }
    auto scales = [&](int64_t group, int64_t column)
                      PYBATCH_INLINE_LAMBDA { return scales_of(at.k_scale, block.head, group, token + column); };
    with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
      score_columns<rows>(digits, panel, key_panel_bytes(), width, depth, work.q_scale + row, scales,
                          scores_of<T>(block, block.head) + i, kScoreStride<T>, Count<kElements<T>>());
    });
  }
}

// Probabilities outside a row's range are zeros, and what they are multiplied by are integers.
template <class T>
void SplitAttention::weigh_panels(const Tile& tile, const Split<T>& at, const Block& block, Unpacked& unpacked,
                                  Partial out) const {
  const T* const* at_values = at.parts[block.first / kPart<T>].v;
  const Granules<T> values = {at_values, at_values + kAhead, block.head * head_stride / kElements<T>};
  const Range columns = block.columns;
  const int64_t row = row_of(tile, block, block.head);
  const uint8_t* digits = work.panels.p;
  for (int64_t first = 0, group = 0; first < depth; first += kValueWidth<T>, group += groups > 1 ? 1 : 0) {
    int8_t* panel = work.panels.values + first / kLanes * kValuePanelBytes + block.first / kQuad * kQuadBytes;
    if (const int64_t from = larger(unpacked.values - block.first, columns.begin); from < columns.end) {
      unpack_values(values, depth, first, from, columns.end, panel, kValuePanelBytes);
    }
    with_count<kRows>(block.rows, [&]<int rows>(Count<rows>) {
      constexpr int panels = kValuePanels<T>;
      alignas(64) int32_t sums[rows][panels * kLanes], placed[panels * kLanes];
      multiply<rows, panels>(digits, panel, kValuePanelBytes, columns.begin / kQuad, columns.end / kQuad, sums[0],
                             panels * kLanes);
      const int64_t count = smaller(depth - first, kValueWidth<T>);
      for (int64_t r = 0; r < rows; ++r) {
        place_sums(sums[r], placed, count, Count<panels>());
        float* acc = out.acc + (row + r) * padded_depth + first;
        for (int64_t i = 0; i < count; i += kLanes) {
          add_scaled(acc + i, load_ints(placed + i), work.p_scale[(row + r) * groups + group], work.keep[row + r]);
        }
      }
    });
    if (groups > 1) digits += p_digit_bytes();
  }
  unpacked.values = larger(unpacked.values, block.first + columns.end);
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
