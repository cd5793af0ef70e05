#pragma once

#include "pybatch/types.h"

namespace pybatch {

// gelu, gelu_tanh, relu2: out = act(x). out may be x.
struct ActivationParams {
  ConstMatrix x;  // [rows, width]
  Matrix out;     // [rows, width], x's dtype
  int64_t rows, width;
};

// xielu: out = alpha_p * x^2 + beta * x where x is above 0, else alpha_n * (exp(min(x, eps)) - 1 - x) + beta * x (Huang
// 2024).
struct XieluParams {
  ConstMatrix x;  // [rows, width]
  Matrix out;     // [rows, width], x's dtype
  int64_t rows, width;
  float alpha_p, alpha_n, beta, eps;
};

// silu_mul, gelu_tanh_mul: out = act(gate) * up, where x holds gate in columns [0, width) and up in [width, 2 * width).
struct GatedActivationParams {
  ConstMatrix x;  // [rows, 2 * width]
  Matrix out;     // [rows, width], x's dtype
  int64_t rows, width;
};

// clamped_swiglu: out = gate * sigmoid(alpha * gate) * (up + 1), of gates and ups as above, each no more than limit,
// and ups no less than -limit (gpt-oss).
struct ClampedSwigluParams {
  ConstMatrix x;  // [rows, 2 * width]
  Matrix out;     // [rows, width], x's dtype
  int64_t rows, width;
  float alpha, limit;
};

// sigmoid_mul: out = x * sigmoid(gate). gelu_tanh_gate: out = x * gelu_tanh(gate).
struct GateParams {
  ConstMatrix x, gate;  // [rows, width]
  Matrix out;           // [rows, width], x's dtype
  int64_t rows, width;
};

}  // namespace pybatch
