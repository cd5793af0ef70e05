#include "pybatch/activation.h"

#include "cpu/activation_lanes.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

template <class Activation>
void plain(const ActivationParams& p, Activation activation) {
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

template <class Activation>
void gated(const GatedActivationParams& p, Activation activation) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* gate = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
        const T* up = gate + p.width;
        T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          int64_t n = p.width - i;
          store_first(out + i, activation(load_first(gate + i, n)) * load_first(up + i, n), n);
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

void silu_mul(const GatedActivationParams& p) {
  gated(p, [](F32x16 x) { return silu(x); });
}

void gelu_tanh_mul(const GatedActivationParams& p) {
  gated(p, [](F32x16 x) { return gelu_tanh(x); });
}

void sigmoid_mul(const SigmoidMulParams& p) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
        const T* gate = static_cast<const T*>(p.gate.data) + row * p.gate.row_stride;
        T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          const int64_t n = p.width - i;
          store_first(out + i, times_sigmoid(load_first(x + i, n), load_first(gate + i, n)), n);
        }
      }
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
