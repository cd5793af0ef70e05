// The ops on rows of activations: norms, activation functions and embedding.
#pragma once

#include "pybatch/activation.h"
#include "pybatch/embedding.h"
#include "pybatch/norm.h"
#include "torch_ops/packed_weights.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct LayerOps : PackedWeights<Backend> {
  using Base = PackedWeights<Backend>;
  using Base::check, Base::input, Base::output, Base::vector_like;
  using Base::check_packed_bytes, Base::check_packed_dense, Base::gguf_type, Base::in_blocks;

  template <void (*kernel)(const NormParams&)>
  static void norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps,
                   const OptionalTensor& residual, Tensor out) {
    typename Backend::Scope scope(x);
    NormParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    p.weight = vector_like(weight, "weight", x.scalar_type(), p.width);
    if (bias) p.bias = vector_like(*bias, "bias", x.scalar_type(), p.width);
    if (residual) {
      p.residual = output(*residual, "residual", p.rows, p.width);
      expect_same_type(p.residual.dtype, "residual", p.x.dtype, "x");
    }
    p.eps = float32(eps, "eps");
    if (out.numel() > 0) kernel(p);
  }

  static void rms_norm(const Tensor& x, const Tensor& weight, double eps, const OptionalTensor& residual, Tensor out) {
    norm<&Backend::rms_norm>(x, weight, std::nullopt, eps, residual, out);
  }

  static void layer_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, double eps,
                         const OptionalTensor& residual, Tensor out) {
    norm<&Backend::layer_norm>(x, weight, bias, eps, residual, out);
  }

  template <class Params>
  static Params plain_params(const Tensor& x, const Tensor& out) {
    Params p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    return p;
  }

  template <void (*kernel)(const ActivationParams&)>
  static void activation(const Tensor& x, Tensor out) {
    typename Backend::Scope scope(x);
    const auto p = plain_params<ActivationParams>(x, out);
    if (out.numel() > 0) kernel(p);
  }

  static void xielu(const Tensor& x, double alpha_p, double alpha_n, double beta, double eps, Tensor out) {
    typename Backend::Scope scope(x);
    auto p = plain_params<XieluParams>(x, out);
    p.alpha_p = float32(alpha_p, "alpha_p");
    p.alpha_n = float32(alpha_n, "alpha_n");
    p.beta = float32(beta, "beta");
    p.eps = float32(eps, "eps");
    if (out.numel() > 0) Backend::xielu(p);
  }

  static void add_normed(const Tensor& x, const OptionalTensor& weight, double eps, double factor, double scale,
                         Tensor residual) {
    typename Backend::Scope scope(x);
    AddNormedParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.residual = output(residual, "residual", p.rows, p.width);
    expect_same_type(p.residual.dtype, "residual", p.x.dtype, "x");
    if (weight) p.weight = vector_like(*weight, "weight", x.scalar_type(), p.width);
    p.eps = float32(eps, "eps");
    p.factor = float32(factor, "factor");
    p.scale = float32(scale, "scale");
    if (x.numel() > 0) Backend::add_normed(p);
  }

  template <class Params>
  static Params gated_params(const Tensor& x, const Tensor& out) {
    Params p{};
    p.x = input(x, "x", kAny, kAny);
    EXPECT(x.size(1) % 2 == 0, "x: expected an even number of columns (gate, then up), got ", x.size(1));
    p.rows = x.size(0);
    p.width = x.size(1) / 2;
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    return p;
  }

  template <void (*kernel)(const GatedActivationParams&)>
  static void gated_activation(const Tensor& x, Tensor out) {
    typename Backend::Scope scope(x);
    const auto p = gated_params<GatedActivationParams>(x, out);
    if (out.numel() > 0) kernel(p);
  }

  static void clamped_swiglu(const Tensor& x, double alpha, double limit, Tensor out) {
    typename Backend::Scope scope(x);
    auto p = gated_params<ClampedSwigluParams>(x, out);
    p.alpha = float32(alpha, "alpha");
    p.limit = float32(limit, "limit");
    EXPECT(p.limit >= 0, "limit: expected no negative number, got ", limit);
    if (out.numel() > 0) Backend::clamped_swiglu(p);
  }

  template <void (*kernel)(const GateParams&)>
  static void gate(const Tensor& x, const Tensor& gate, Tensor out) {
    typename Backend::Scope scope(x);
    GateParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.gate = input(gate, "gate", p.rows, p.width);
    expect_same_type(p.gate.dtype, "gate", p.x.dtype, "x");
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    if (out.numel() > 0) kernel(p);
  }

  static void embedding(const Tensor& ids, const Tensor& table, const OptionalTensor& scale, int64_t vocab,
                        double multiplier, Tensor out) {
    typename Backend::Scope scope(ids);
    EmbeddingParams p{};
    check(ids, "ids", ScalarType::Long, {kAny});
    p.ids = pointer<int64_t>(ids);
    p.count = ids.size(0);
    p.out = output(out, "out", p.count, kAny);
    p.width = out.size(1);
    p.vocab = vocab;
    p.multiplier = float32(multiplier, "multiplier");
    EXPECT(vocab > 0, "vocab: expected a positive number, got ", vocab);
    Backend::verify(Ids{"ids", p.ids, p.count, vocab}, {p.ids});
    expect_given(table, "table");
    p.table = table.data_ptr();
    if (table.element_size() == 1 && table.scalar_type() != ScalarType::Byte && table.dim() >= 4) {
      p.table_dtype = check_packed_bytes(table, "table", true, vocab, p.width);
      EXPECT(scale.has_value(), "scale: expected the scales of the ", name_of(table.scalar_type()), " table");
      p.scale = static_cast<const float*>(vector_like(*scale, "scale", ScalarType::Float, vocab));
      p.layout = in_blocks(table) ? TableLayout::packed_blocks : TableLayout::packed_scaled;
    } else if (table.scalar_type() == ScalarType::Byte || table.scalar_type() == ScalarType::Char) {
      p.gguf_type = gguf_type(table, "table", vocab, p.width);
      p.layout = TableLayout::packed_gguf;
    } else {
      p.table_dtype = float_type(table, "table");
      if (table.dim() > 2) {
        check_packed_dense(table, "table", vocab, p.width);
        p.layout = TableLayout::packed_dense;
      } else {
        check(table, "table", table.scalar_type(), {vocab, p.width});
        p.layout = TableLayout::rows;
      }
    }
    if (out.numel() > 0) Backend::embedding(p);
  }
};

}  // namespace pybatch
