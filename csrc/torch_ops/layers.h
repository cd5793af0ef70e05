// The ops on rows of activations: norms, activation functions, embedding and matmuls.
#pragma once

#include "pybatch/activation.h"
#include "pybatch/embedding.h"
#include "pybatch/matmul.h"
#include "pybatch/norm.h"
#include "torch_ops/checks.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct LayerOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::input, Base::output, Base::vector_like;

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

  template <void (*kernel)(const ActivationParams&)>
  static void activation(const Tensor& x, Tensor out) {
    typename Backend::Scope scope(x);
    ActivationParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    if (out.numel() > 0) kernel(p);
  }

  static void add_normed(const Tensor& x, const OptionalTensor& weight, double eps, double factor, Tensor residual) {
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
    if (x.numel() > 0) Backend::add_normed(p);
  }

  template <void (*kernel)(const GatedActivationParams&)>
  static void gated_activation(const Tensor& x, Tensor out) {
    typename Backend::Scope scope(x);
    GatedActivationParams p{};
    p.x = input(x, "x", kAny, kAny);
    EXPECT(x.size(1) % 2 == 0, "x: expected an even number of columns (gate, then up), got ", x.size(1));
    p.rows = x.size(0);
    p.width = x.size(1) / 2;
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    if (out.numel() > 0) kernel(p);
  }

  static void sigmoid_mul(const Tensor& x, const Tensor& gate, Tensor out) {
    typename Backend::Scope scope(x);
    SigmoidMulParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    p.width = x.size(1);
    p.gate = input(gate, "gate", p.rows, p.width);
    expect_same_type(p.gate.dtype, "gate", p.x.dtype, "x");
    p.out = output(out, "out", p.rows, p.width);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    if (out.numel() > 0) Backend::sigmoid_mul(p);
  }

  static void check_packed_dense(const Tensor& weight, const char* name, int64_t n, int64_t k) {
    const int64_t panels = (n + kPanel - 1) / kPanel, bytes = weight.element_size(), groups = packed_groups(k, bytes);
    if (bytes == 4) {
      check(weight, name, weight.scalar_type(), {panels, groups, kPanel});
    } else {
      check(weight, name, weight.scalar_type(), {panels, groups, kPanel, 4 / bytes});
    }
    expect_aligned(weight, name);
  }

  static void check_packed_int8(const Tensor& weight, const char* name, int64_t n, int64_t k) {
    check(weight, name, ScalarType::Char, {(n + kPanel - 1) / kPanel, packed_groups(k, 1), kPanel, 4});
    expect_aligned(weight, name);
  }

  // Packed blocks of a GGUF file's weights; the bytes of a group, and their dtype, tell their type.
  static GgufType gguf_type(const Tensor& weight, const char* name, int64_t n, int64_t k) {
    const bool code_book = weight.defined() && weight.scalar_type() == ScalarType::Char;
    const ScalarType dtype = code_book ? ScalarType::Char : ScalarType::Byte;
    check(weight, name, dtype, {kAny, kAny, kAny});
    for (const GgufBlock& block : kGgufBlocks) {
      if (weight.size(2) != kPanel * block.bytes || block.code_book != code_book) continue;
      EXPECT(k % block.weights == 0, name, ": expected a multiple of ", block.weights, " weights a column for ",
             block.name, ", got ", k);
      check(weight, name, dtype, {(n + kPanel - 1) / kPanel, k / block.weights, kPanel * block.bytes});
      expect_aligned(weight, name);
      return static_cast<GgufType>(&block - kGgufBlocks);
    }
    std::ostringstream known;
    const char* separator = "";
    for (const GgufBlock& block : kGgufBlocks) {
      if (block.code_book != code_book) continue;
      known << separator << kPanel * block.bytes << " (" << block.name << ")";
      separator = ", ";
    }
    fail(name, ": expected a last extent of ", known.str(), ", got ", weight.size(2));
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
    if (table.scalar_type() == ScalarType::Char && table.dim() == 4) {
      check_packed_int8(table, "table", vocab, p.width);
      EXPECT(scale.has_value(), "scale: expected the int8 table's scales");
      p.scale = static_cast<const float*>(vector_like(*scale, "scale", ScalarType::Float, vocab));
      p.layout = TableLayout::packed_int8;
      p.table_dtype = DType::i8;
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

  // ---- matmuls ----

  static MatmulParams matmul_params(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& norm, double norm_eps, int64_t epilogue, const Tensor& out) {
    MatmulParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.m = x.size(0);
    p.k = x.size(1);
    p.out = output(out, "out", p.m, kAny);
    p.width = out.size(1);
    EXPECT(epilogue >= 0 && epilogue <= 3,
           "epilogue: expected 0 (store), 1 (add), 2 (silu_mul) or 3 (gelu_tanh_mul), got ", epilogue);
    p.epilogue = static_cast<Epilogue>(epilogue);
    p.n = is_gated(p.epilogue) ? (p.width + kPanel - 1) / kPanel * kPanel * 2 : p.width;
    expect_given(weight, "weight");
    p.weight = weight.data_ptr();
    if (bias) {
      p.bias_dtype = float_type(*bias, "bias");
      p.bias = vector_like(*bias, "bias", bias->scalar_type(), p.n);
    }
    if (norm) p.norm = vector_like(*norm, "norm", x.scalar_type(), p.k);
    p.norm_eps = float32(norm_eps, "norm_eps");
    return p;
  }

  static void matmul_dense(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& norm, double norm_eps, int64_t epilogue, Tensor out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, bias, norm, norm_eps, epilogue, out);
    p.weight_dtype = float_type(weight, "weight");
    check_packed_dense(weight, "weight", p.n, p.k);
    if (out.numel() > 0) Backend::matmul_dense(p);
  }

  template <void (*kernel)(const MatmulParams&)>
  static void matmul_int8(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
                          const OptionalTensor& norm, double norm_eps, int64_t epilogue, Tensor out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, bias, norm, norm_eps, epilogue, out);
    p.weight_dtype = DType::i8;
    EXPECT(p.k <= 131072, "x: expected at most 131072 columns (int32 sums of int8 products), got ", p.k);
    check_packed_int8(weight, "weight", p.n, p.k);
    p.scale = static_cast<const float*>(vector_like(scale, "scale", ScalarType::Float, p.n));
    if (out.numel() > 0) kernel(p);
  }

  static void matmul_gguf(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& norm,
                          double norm_eps, int64_t epilogue, Tensor out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, bias, norm, norm_eps, epilogue, out);
    p.gguf_type = gguf_type(weight, "weight", p.n, p.k);
    if (out.numel() > 0) Backend::matmul_gguf(p);
  }
};

}  // namespace pybatch
