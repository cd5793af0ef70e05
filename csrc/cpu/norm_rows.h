// Norms of one row, for the norm ops and for matmuls that normalise their input.
#pragma once

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// The sum over a row of add(sum so far, elements), in four chains to hide the latency of an addition.
template <class T, class F>
PYBATCH_INLINE float sum_row(const T* x, int64_t n, F&& add) {
  constexpr int kChains = 4;
  F32x16 sum[kChains] = {zeros(), zeros(), zeros(), zeros()};
  int64_t i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    for (int c = 0; c < kChains; ++c) sum[c] = add(sum[c], load(x + i + c * kLanes));
  }
  for (; i + kLanes <= n; i += kLanes) sum[0] = add(sum[0], load(x + i));
  if (i < n) sum[0] = select_first(n - i, add(sum[0], load_first(x + i, n - i)), sum[0]);
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
PYBATCH_INLINE F32x16 rounded_to(F32x16 a) {
  if constexpr (sizeof(T) == sizeof(float)) return a;
  T buffer[kLanes];
  store(buffer, a);
  return load(buffer);
}

// 16-bit rows are rounded before the weight is applied, as the models were trained.
template <class T>
void rms_norm_row(const T* x, const T* weight, float eps, T* out, int64_t n) {
  float squares = sum_row(x, n, [](F32x16 sum, F32x16 v) { return fma(v, v, sum); });
  const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    F32x16 normalised = rounded_to<T>(load_first(x + i, n - i) * inverse);
    store_first(out + i, normalised * load_first(weight + i, n - i), n - i);
  }
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
