// What the matmuls share before and after the multiply of gemm.h: activations as it takes them, and what becomes of its
// sums.
#pragma once

#include <type_traits>

#include "cpu/activation_lanes.h"
#include "cpu/gemm.h"
#include "cpu/norm_rows.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

constexpr int64_t kRowWorkPerThread = 8192;   // activations to prepare that are worth waking a thread for
constexpr float kSmallestNormal = 0x1p-126f;  // of the scale of quantised activations

namespace {

template <class Pointer>
using Pointee = std::remove_pointer_t<Pointer>;

// Calls f(row, its activations) for every row of the product, in parallel; with p.norm, the row normalised. Rows are
// counted as those that take kRows together are laid out.
template <int kRows, class F>
void for_each_row(const MatmulParams& p, const F& f) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    parallel_for(p.m, ceil_div(kRowWorkPerThread, p.k + 1), [&](int64_t row, int64_t end) {
      for (int64_t expert = 0; row < end; ++row) {
        const int64_t token = p.experts.tokens != nullptr ? p.experts.tokens[row] : row;
        auto* x = static_cast<const T*>(p.x.data) + token * p.x.row_stride;
        if (p.norm != nullptr) {
          auto* normed = static_cast<T*>(thread_scratch(kNormed, p.k * static_cast<int64_t>(sizeof(T))));
          rms_norm_row(x, static_cast<const T*>(p.norm), p.norm_eps, normed, p.k);
          x = normed;
        }
        if (p.experts.count == 0) {
          f(row, x);
        } else {
          while (row >= p.experts.starts[expert + 1]) ++expert;
          f(first_row(p.experts, expert, kRows) + row - p.experts.starts[expert], x);
        }
      }
    });
  });
}

// The activations as fp32 rows, in scratch unless they already are.
inline ConstMatrix f32_rows(const MatmulParams& p) {
  if (p.x.dtype == DType::f32 && p.norm == nullptr && p.experts.tokens == nullptr) return p.x;
  int64_t stride = ceil_div(p.k, kLanes) * kLanes;
  if (stride % 1024 == 0) stride += kLanes;  // rows a multiple of 4 KiB apart would share one cache set
  auto* rows = static_cast<float*>(thread_scratch(kActivations, p.m * stride * 4));
  for_each_row<1>(p, [&](int64_t row, auto* x) {
    for (int64_t i = 0; i < p.k; i += kLanes) store(rows + row * stride + i, load_first(x + i, p.k - i));
  });
  return {rows, stride, DType::f32};
}

// The bias of 16 columns; zeros past the last, and where there is none.
inline F32x16 bias_at(const MatmulParams& p, int64_t column) {
  F32x16 bias = zeros();
  if (p.bias == nullptr) return bias;
  with_float_type(p.bias_dtype, [&](auto* type) {
    using T = Pointee<decltype(type)>;
    bias = load_first(static_cast<const T*>(p.bias) + column, p.n - column);
  });
  return bias;
}

// Writes a tile's complete sums as p.epilogue says. A product is value(its panel's first column)(row, sum) + bias, and
// is rounded to out's type before it is used, as if it had been stored first. Rows past the last of p are left out.
template <class Sum, class Value>
PYBATCH_INLINE void write_tile(const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                               const Sum* sums, const Value& value) {
  with_float_type(p.out.dtype, [&](auto* type) PYBATCH_INLINE_LAMBDA {
    using T = Pointee<decltype(type)>;
    auto product = [&](int64_t i) PYBATCH_INLINE_LAMBDA {  // of panel i, by row
      const int64_t column = (panel + i) * kPanel;
      const F32x16 bias = bias_at(p, column);
      const Sum* panel_sums = sums + i * rows;
      return [=, of_row = value(column)](int64_t r)
                 PYBATCH_INLINE_LAMBDA { return rounded_to<T>(of_row(row + r, panel_sums[r]) + bias); };
    };
    auto write = [&](int64_t column, const auto& result) PYBATCH_INLINE_LAMBDA {
      const int64_t stride = p.out.row_stride, left = p.width - column, end = min(rows, p.m - row);
      T* out = static_cast<T*>(p.out.data) + row * stride + column;
      if (left >= kLanes) {
        for (int64_t r = 0; r < end; ++r, out += stride) store(out, result(r, load(out)));
      } else {
        for (int64_t r = 0; r < end; ++r, out += stride) store_first(out, result(r, load_first(out, left)), left);
      }
    };
    auto write_gated = [&](const auto& activation) PYBATCH_INLINE_LAMBDA {
      for (int64_t i = 0; i < panels; i += 2) {
        auto gate = product(i), up = product(i + 1);
        write((panel + i) / 2 * kPanel,
              [=](int64_t r, F32x16) PYBATCH_INLINE_LAMBDA { return activation(gate(r)) * up(r); });
      }
    };
    switch (p.epilogue) {
      case Epilogue::store:
        for (int64_t i = 0; i < panels; ++i) {
          write((panel + i) * kPanel, [of = product(i)](int64_t r, F32x16) PYBATCH_INLINE_LAMBDA { return of(r); });
        }
        break;
      case Epilogue::add:
        for (int64_t i = 0; i < panels; ++i) {
          write((panel + i) * kPanel,
                [of = product(i)](int64_t r, F32x16 out) PYBATCH_INLINE_LAMBDA { return out + of(r); });
        }
        break;
      case Epilogue::silu_mul: write_gated([](F32x16 x) PYBATCH_INLINE_LAMBDA { return silu(x); }); break;
      case Epilogue::gelu_tanh_mul: write_gated([](F32x16 x) PYBATCH_INLINE_LAMBDA { return gelu_tanh(x); }); break;
    }
  });
}

}  // namespace
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
