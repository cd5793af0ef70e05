// Softmaxes over parts of the tokens. They are merged in ascending order, as in FlashAttention-2 (Dao 2023).
#pragma once

#include "cpu/attention_call.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Unnormalised softmax over a part of the tokens. sum = 0: the row has seen no token.
struct Partial {
  float* max;  // [rows]
  float* sum;  // [rows]
  float* acc;  // [rows, padded depth]
};

// One in a buffer of partial_floats().
inline int64_t partial_floats(const AttentionCall& call) { return call.max_rows * (call.padded_depth + 2); }
inline Partial partial_at(const AttentionCall& call, float* buffer) {
  return {buffer, buffer + call.max_rows, buffer + 2 * call.max_rows};
}

// Adds the tokens that come after those of `into`.
inline void merge(const AttentionCall& call, const Tile& tile, Partial part, Partial into) {
  for (int64_t row = 0; row < call.rows(tile); ++row) {
    if (part.sum[row] == 0) continue;
    float* acc = into.acc + row * call.padded_depth;
    const float* more = part.acc + row * call.padded_depth;
    if (into.sum[row] == 0) {
      into.max[row] = part.max[row];
      into.sum[row] = part.sum[row];
      std::memcpy(acc, more, static_cast<size_t>(call.padded_depth) * sizeof(float));
      continue;
    }
    const float a = into.max[row], b = part.max[row], top = a > b ? a : b;
    const float keep = exp2(a - top), add = exp2(b - top);
    into.max[row] = top;
    into.sum[row] = into.sum[row] * keep + part.sum[row] * add;
    for (int64_t i = 0; i < call.depth; i += kLanes) {
      store(acc + i, fma(load(more + i), broadcast(add), load(acc + i) * broadcast(keep)));
    }
  }
}

// Writes the rows' outputs, once all tokens have been merged.
inline void finish(const AttentionCall& call, const Tile& tile, Partial state) {
  const PagedAttentionParams& p = call.p;
  for (int64_t row = 0; row < call.rows(tile); ++row) {
    const int64_t of_head = row % call.head_rows(tile);
    const int64_t head = (tile.kv_head + row / call.head_rows(tile)) * call.group + of_head % call.group;
    float sum = state.sum[row], keep = 1.0f;
    if (p.sinks) {
      const float a = state.max[row], b = p.sinks[head] * kLog2E, top = a > b ? a : b;
      keep = exp2(a - top);
      sum = sum * keep + exp2(b - top);
    }
    const F32x16 factor = broadcast(keep / sum);
    const float* acc = state.acc + row * call.padded_depth;
    with_float_type(p.out.dtype, [&]<class T>(T*) {
      T* to = static_cast<T*>(p.out.data) + (tile.first + of_head / call.group) * p.out.row_stride + head * call.depth;
      for (int64_t i = 0; i < call.depth; i += kLanes) store_first(to + i, load(acc + i) * factor, call.depth - i);
    });
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
