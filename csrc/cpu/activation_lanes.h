// The activation functions of gated MLPs, on sixteen lanes.
#pragma once

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

// a * sigmoid(z); exactly 0 where the sigmoid is below 2^-125, so that a huge negative `a` gives 0.
PYBATCH_INLINE F32x16 times_sigmoid(F32x16 a, F32x16 z) {
  return zero_where_below(z, broadcast(-87.0f), a / (broadcast(1.0f) + exp(zeros() - z)));
}

PYBATCH_INLINE F32x16 silu(F32x16 x) { return times_sigmoid(x, x); }

// 0.5 x (1 + tanh(u)) = x sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
PYBATCH_INLINE F32x16 gelu_tanh(F32x16 x) {
  F32x16 cubic = fma(x * x * x, broadcast(0.044715f), x);
  return times_sigmoid(x, cubic * broadcast(1.5957691216057308f));
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
