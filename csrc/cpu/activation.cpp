#include "pybatch/activation.h"

#include "cpu/kernels.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

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

void silu_mul(const GatedActivationParams& p) {
  gated(p, [](F32x16 x) { return silu(x); });
}

void gelu_tanh_mul(const GatedActivationParams& p) {
  gated(p, [](F32x16 x) { return gelu_tanh(x); });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
