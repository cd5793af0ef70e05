#include "pybatch/activation.h"

#include "cpu/activation_lanes.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

template <class Params, class Activation>
void plain(const Params& p, Activation activation) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
        T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          store_first(out + i, activation(load_first(x + i, p.width - i)), p.width - i);
        }
      }
    });
  });
}

// multiply: of gates and ups.
template <class Params, class Multiply>
void gated(const Params& p, Multiply multiply) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* gate = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
        const T* up = gate + p.width;
        T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          int64_t n = p.width - i;
          store_first(out + i, multiply(load_first(gate + i, n), load_first(up + i, n)), n);
        }
      }
    });
  });
}

// multiply: of x and gate.
template <class Multiply>
void multiply_by(const GateParams& p, Multiply multiply) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
        const T* gate = static_cast<const T*>(p.gate.data) + row * p.gate.row_stride;
        T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          const int64_t n = p.width - i;
          store_first(out + i, multiply(load_first(x + i, n), load_first(gate + i, n)), n);
        }
      }
    });
  });
}

}  // namespace

void gelu(const ActivationParams& p) {
  plain(p, [](F32x16 x) { return gelu(x); });
}

void gelu_tanh(const ActivationParams& p) {
  plain(p, [](F32x16 x) { return gelu_tanh(x); });
}

void relu2(const ActivationParams& p) {
  plain(p, [](F32x16 x) { return relu2(x); });
}

void xielu(const XieluParams& p) {
  const F32x16 alpha_p = broadcast(p.alpha_p), alpha_n = broadcast(p.alpha_n), beta = broadcast(p.beta),
               eps = broadcast(p.eps), one = broadcast(1.0f);
  plain(p, [=](F32x16 x) {
    const F32x16 above = fma(alpha_p * x, x, beta * x);
    const F32x16 below = fma(alpha_n, exp(min(eps, x)) - one - x, beta * x);  // of eps and NaN the latter
    return zero_where_below(x, zeros(), above) + zero_where_below(zeros() - x, zeros(), below);
  });
}

void silu_mul(const GatedActivationParams& p) {
  gated(p, [](F32x16 gate, F32x16 up) { return silu(gate) * up; });
}

void gelu_tanh_mul(const GatedActivationParams& p) {
  gated(p, [](F32x16 gate, F32x16 up) { return gelu_tanh(gate) * up; });
}

void clamped_swiglu(const ClampedSwigluParams& p) {
  const F32x16 alpha = broadcast(p.alpha), limit = broadcast(p.limit), low = broadcast(-p.limit);
  gated(p, [=](F32x16 gate, F32x16 up) {
    gate = min(limit, gate);  // in this order NaN stays
    up = min(limit, max(low, up));
    return times_sigmoid(gate, alpha * gate) * (up + broadcast(1.0f));
  });
}

void sigmoid_mul(const GateParams& p) { multiply_by(p, times_sigmoid); }

void gelu_tanh_gate(const GateParams& p) {
  multiply_by(p, [](F32x16 x, F32x16 gate) { return x * gelu_tanh(gate); });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
