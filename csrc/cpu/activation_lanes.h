// The activation functions of MLPs, on sixteen lanes.
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

// x times the normal distribution's share below x, which is half of erfc(-x / sqrt(2)): by the fit of erfc that Press
// et al. give in Numerical Recipes (erfcc), whose relative error is below 1.2e-7. Exactly 0 below -14, where it is less
// than any float32.
PYBATCH_INLINE F32x16 gelu(F32x16 x) {
  const F32x16 z = abs(x) * broadcast(0.7071067811865476f);
  const F32x16 t = broadcast(1.0f) / fma(z, broadcast(0.5f), broadcast(1.0f));
  constexpr float kFit[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                            0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  F32x16 fit = broadcast(0.17087277f);
  for (float c : kFit) fit = fma(fit, t, broadcast(c));
  const F32x16 tail = broadcast(0.5f) * t * exp(fit - z * z);
  const F32x16 positive = zero_where_below(x, zeros(), broadcast(1.0f) - tail - tail);
  return zero_where_below(x, broadcast(-14.0f), x * (tail + positive));
}

PYBATCH_INLINE F32x16 relu2(F32x16 x) { return zero_where_below(x, zeros(), x * x); }

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
