#include "pybatch/norm.h"

#include "cpu/activation_lanes.h"
#include "cpu/norm_rows.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

template <class T>
PYBATCH_INLINE void add_into(T* residual, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    store_first(residual + i, load_first(residual + i, n - i) + load_first(x + i, n - i), n - i);
  }
}

template <class T>
void layer_norm_row(const T* x, const T* weight, const T* bias, float eps, T* out, int64_t n) {
  float sum = sum_row(x, n, [](F32x16 s, F32x16 v) { return s + v; });
  const F32x16 mean = broadcast(sum / static_cast<float>(n));
  float squares = sum_row(x, n, [mean](F32x16 s, F32x16 v) {
    F32x16 centred = v - mean;
    return fma(centred, centred, s);
  });
  const F32x16 inverse = broadcast(1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    F32x16 normalised = (load_first(x + i, n - i) - mean) * inverse;
    F32x16 offset = bias ? load_first(bias + i, n - i) : zeros();
    store_first(out + i, fma(normalised, load_first(weight + i, n - i), offset), n - i);
  }
}

template <class T>
void add_normed_row(const AddNormedParams& p, const T* x, T* residual) {
  const int64_t n = p.width;
  const T* weight = static_cast<const T*>(p.weight);
  float deviation = 1.0f;
  if (weight) {
    const float squares = sum_row(x, n, [](F32x16 sum, F32x16 v) { return fma(v, v, sum); });
    deviation = __builtin_sqrtf(squares / static_cast<float>(n) + p.eps);
  }
  const F32x16 inverse = broadcast(1.0f / deviation), factor = broadcast(p.factor), scale = broadcast(p.scale);
  for (int64_t i = 0; i < n; i += kLanes) {
    F32x16 v = load_first(x + i, n - i);
    if (weight) v = rounded_to<T>(rounded_to<T>(v * inverse) * load_first(weight + i, n - i));
    const F32x16 sum = load_first(residual + i, n - i) + rounded_to<T>(v * factor);
    store_first(residual + i, rounded_to<T>(sum) * scale, n - i);
  }
}

template <class T>
using NormRow = void (*)(const T* x, const T* weight, const T* bias, float eps, T* out, int64_t n);

template <class T>
void norm_rows(const NormParams& p, NormRow<T> norm_row) {
  parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p.x.data) + row * p.x.row_stride;
      if (p.residual.data != nullptr) {
        T* residual = static_cast<T*>(p.residual.data) + row * p.residual.row_stride;
        add_into(residual, x, p.width);
        x = residual;
      }
      T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
      norm_row(x, static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), p.eps, out, p.width);
    }
  });
}

}  // namespace

void rms_norm(const NormParams& p) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    norm_rows<T>(p, [](const T* x, const T* weight, const T*, float eps, T* out, int64_t n) {
      rms_norm_row(x, weight, eps, out, n);
    });
  });
}

void layer_norm(const NormParams& p) {
  with_float_type(p.x.dtype, [&]<class T>(T*) { norm_rows<T>(p, layer_norm_row<T>); });
}

void gated_rms_norm(const GatedNormParams& p) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows * p.heads, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / p.heads, column = i % p.heads * p.width;
        const T* gate = static_cast<const T*>(p.gate.data) + row * p.gate.row_stride + column;
        T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride + column;
        rms_norm_row(static_cast<const T*>(p.x.data) + row * p.x.row_stride + column, static_cast<const T*>(p.weight),
                     p.eps, out, p.width);
        for (int64_t c = 0; c < p.width; c += kLanes) {
          const int64_t n = p.width - c;
          store_first(out + c, load_first(out + c, n) * silu(load_first(gate + c, n)), n);
        }
      }
    });
  });
}

void add_normed(const AddNormedParams& p) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    parallel_for(p.rows, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        add_normed_row(p, static_cast<const T*>(p.x.data) + row * p.x.row_stride,
                       static_cast<T*>(p.residual.data) + row * p.residual.row_stride);
      }
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
