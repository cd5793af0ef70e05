// The ops on rows of activations: norms, activation functions, embedding and matmuls.
#pragma once

#include <utility>
#include <vector>

#include "pybatch/activation.h"
#include "pybatch/embedding.h"
#include "pybatch/matmul.h"
#include "pybatch/norm.h"
#include "pybatch/routing.h"
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

  // Packed weights: of one matrix, or where experts is not 0 of a stack of them.
  static void check_packed(const Tensor& weight, const char* name, ScalarType type, int64_t experts,
                           std::vector<int64_t> shape) {
    if (experts != 0) shape.insert(shape.begin(), experts);
    check(weight, name, type, shape);
    expect_aligned(weight, name);
  }

  static void check_packed_dense(const Tensor& weight, const char* name, int64_t n, int64_t k, int64_t experts = 0) {
    const int64_t panels = (n + kPanel - 1) / kPanel, bytes = weight.element_size(), groups = packed_groups(k, bytes);
    std::vector<int64_t> shape{panels, groups, kPanel};
    if (bytes != 4) shape.push_back(4 / bytes);
    check_packed(weight, name, weight.scalar_type(), experts, std::move(shape));
  }

  // float8: whether weights may be that, too, where they may also be in blocks. Returns which they are.
  static DType check_packed_bytes(const Tensor& weight, const char* name, bool float8, int64_t n, int64_t k,
                                  int64_t experts = 0) {
    const bool is_float8 = float8 && weight.defined() && weight.scalar_type() == ScalarType::Float8_e4m3fn;
    if (is_float8 && in_blocks(weight, experts)) {
      const int64_t panels = (n + kPanel - 1) / kPanel, blocks = (k + kBlockK - 1) / kBlockK;
      check_packed(weight, name, ScalarType::Float8_e4m3fn, experts, {panels, blocks, kBlockK / 4 + 1, kPanel, 4});
      return DType::e4m3;
    }
    check_packed(weight, name, is_float8 ? ScalarType::Float8_e4m3fn : ScalarType::Char, experts,
                 {(n + kPanel - 1) / kPanel, packed_groups(k, 1), kPanel, 4});
    return is_float8 ? DType::e4m3 : DType::i8;
  }

  static bool in_blocks(const Tensor& weight, int64_t experts = 0) {
    return weight.defined() && weight.dim() == 5 + (experts != 0);
  }

  // Packed blocks of a GGUF file's weights; the bytes of a group, and their dtype, tell their type.
  static GgufType gguf_type(const Tensor& weight, const char* name, int64_t n, int64_t k, int64_t experts = 0) {
    const bool code_book = weight.defined() && weight.scalar_type() == ScalarType::Char;
    const ScalarType dtype = code_book ? ScalarType::Char : ScalarType::Byte;
    check_packed(weight, name, dtype, experts, {kAny, kAny, kAny});
    const int64_t group_bytes = weight.size(weight.dim() - 1);
    for (const GgufBlock& block : kGgufBlocks) {
      if (group_bytes != kPanel * block.bytes || block.code_book != code_book) continue;
      EXPECT(k % block.weights == 0, name, ": expected a multiple of ", block.weights, " weights a column for ",
             block.name, ", got ", k);
      check_packed(weight, name, dtype, experts, {(n + kPanel - 1) / kPanel, k / block.weights, kPanel * block.bytes});
      return static_cast<GgufType>(&block - kGgufBlocks);
    }
    std::ostringstream known;
    const char* separator = "";
    for (const GgufBlock& block : kGgufBlocks) {
      if (block.code_book != code_book) continue;
      known << separator << kPanel * block.bytes << " (" << block.name << ")";
      separator = ", ";
    }
    fail(name, ": expected a last extent of ", known.str(), ", got ", group_bytes);
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

  // ---- matmuls ----

  struct ExpertTensors {
    const Tensor& starts;
    const OptionalTensor &tokens, &places, &weights;
  };

  // rank: of one packed weight. experts: null where it multiplies all rows.
  static MatmulParams matmul_params(const Tensor& x, const Tensor& weight, int64_t rank, const OptionalTensor& bias,
                                    const OptionalTensor& norm, double norm_eps, int64_t epilogue,
                                    const ExpertTensors* experts, const Tensor& out) {
    MatmulParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.m = x.size(0);
    p.k = x.size(1);
    EXPECT(epilogue >= 0 && epilogue <= 3,
           "epilogue: expected 0 (store), 1 (add), 2 (silu_mul) or 3 (gelu_tanh_mul), got ", epilogue);
    p.epilogue = static_cast<Epilogue>(epilogue);
    if (experts != nullptr) {
      expect_given(weight, "weight");
      EXPECT(weight.dim() == rank + 1 && weight.size(0) > 0, "weight: expected a stack of packed weights, got shape ",
             shape_of(weight));
      p.experts = experts_of(*experts, weight, p.epilogue, &p.m);
    }
    p.out = output(out, "out", p.experts.places != nullptr ? p.m / p.experts.top_k : p.m, kAny);
    p.width = out.size(1);
    p.n = is_gated(p.epilogue) ? (p.width + kPanel - 1) / kPanel * kPanel * 2 : p.width;
    expect_given(weight, "weight");
    p.weight = weight.data_ptr();
    if (bias) {
      p.bias_dtype = float_type(*bias, "bias");
      p.bias = of_columns(*bias, "bias", bias->scalar_type(), p);
    }
    if (norm) p.norm = vector_like(*norm, "norm", x.scalar_type(), p.k);
    p.norm_eps = float32(norm_eps, "norm_eps");
    return p;
  }

  // rows: of x; then of the product.
  static Experts experts_of(const ExpertTensors& t, const Tensor& weight, Epilogue epilogue, int64_t* rows) {
    Experts e{};
    e.count = weight.size(0);
    e.x_rows = *rows;
    e.weight_bytes = weight.numel() / e.count * static_cast<int64_t>(weight.element_size());
    if (t.tokens) {
      check(*t.tokens, "tokens", ScalarType::Int, {kAny});
      e.tokens = pointer<int32_t>(*t.tokens);
      Backend::verify(Indices{"tokens", e.tokens, t.tokens->size(0), *rows}, {e.tokens});
      *rows = t.tokens->size(0);
    }
    check(t.starts, "starts", ScalarType::Int, {e.count + 1});
    e.starts = pointer<int32_t>(t.starts);
    Backend::verify(ExpertRows{e.starts, e.count, *rows}, {e.starts});
    EXPECT(t.places.has_value() == t.weights.has_value(), "weights: expected them with places, and without them none");
    if (t.places) {
      EXPECT(!is_gated(epilogue), "epilogue: expected 0 (store) or 1 (add) where rows are summed over experts");
      check(*t.places, "places", ScalarType::Int, {kAny, kAny});
      e.top_k = t.places->size(1);
      EXPECT(e.top_k > 0 && t.places->numel() == *rows, "places: expected ", *rows, " (the rows of the product), got ",
             t.places->numel());
      check(*t.weights, "weights", ScalarType::Float, {t.places->size(0), e.top_k});
      e.places = pointer<int32_t>(*t.places);
      e.weights = pointer<float>(*t.weights);
      Backend::verify(Indices{"places", e.places, *rows, *rows}, {e.places});
    }
    return e;
  }

  // One number a column, of each expert.
  static const void* of_columns(const Tensor& t, const char* name, ScalarType type, const MatmulParams& p) {
    if (p.experts.count == 0) return vector_like(t, name, type, p.n);
    check(t, name, type, {p.experts.count, p.n});
    return t.data_ptr();
  }

  static void multiply_dense(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& norm, double norm_eps, int64_t epilogue,
                             const ExpertTensors* experts, const Tensor& out) {
    typename Backend::Scope scope(x);
    const int64_t rank = weight.defined() && weight.element_size() == 4 ? 3 : 4;
    MatmulParams p = matmul_params(x, weight, rank, bias, norm, norm_eps, epilogue, experts, out);
    p.weight_dtype = float_type(weight, "weight");
    check_packed_dense(weight, "weight", p.n, p.k, p.experts.count);
    if (out.numel() > 0) Backend::matmul_dense(p);
  }

  template <void (*kernel)(const MatmulParams&)>
  static void multiply_bytes(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
                             const OptionalTensor& norm, double norm_eps, int64_t epilogue,
                             const ExpertTensors* experts, const Tensor& out) {
    typename Backend::Scope scope(x);
    const int64_t rank = weight.defined() && weight.dim() == (experts != nullptr ? 6 : 5) ? 5 : 4;
    MatmulParams p = matmul_params(x, weight, rank, bias, norm, norm_eps, epilogue, experts, out);
    EXPECT(p.k <= 131072, "x: expected at most 131072 columns (int32 sums of int8 products), got ", p.k);
    constexpr bool kFloat8 = kernel == &Backend::matmul_w8a16;
    p.weight_dtype = check_packed_bytes(weight, "weight", kFloat8, p.n, p.k, p.experts.count);
    p.in_blocks = rank == 5;
    p.scale = static_cast<const float*>(of_columns(scale, "scale", ScalarType::Float, p));
    if (out.numel() > 0) kernel(p);
  }

  static void multiply_gguf(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& norm, double norm_eps, int64_t epilogue, const ExpertTensors* experts,
                            const Tensor& out) {
    typename Backend::Scope scope(x);
    MatmulParams p = matmul_params(x, weight, 3, bias, norm, norm_eps, epilogue, experts, out);
    p.gguf_type = gguf_type(weight, "weight", p.n, p.k, p.experts.count);
    if (out.numel() > 0) Backend::matmul_gguf(p);
  }

  static void matmul_dense(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& norm, double norm_eps, int64_t epilogue, Tensor out) {
    multiply_dense(x, weight, bias, norm, norm_eps, epilogue, nullptr, out);
  }
  static void experts_dense(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& norm, double norm_eps, int64_t epilogue, const Tensor& starts,
                            const OptionalTensor& tokens, const OptionalTensor& places, const OptionalTensor& weights,
                            Tensor out) {
    const ExpertTensors experts{starts, tokens, places, weights};
    multiply_dense(x, weight, bias, norm, norm_eps, epilogue, &experts, out);
  }

  template <void (*kernel)(const MatmulParams&)>
  static void matmul_bytes(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
                           const OptionalTensor& norm, double norm_eps, int64_t epilogue, Tensor out) {
    multiply_bytes<kernel>(x, weight, scale, bias, norm, norm_eps, epilogue, nullptr, out);
  }
  template <void (*kernel)(const MatmulParams&)>
  static void experts_bytes(const Tensor& x, const Tensor& weight, const Tensor& scale, const OptionalTensor& bias,
                            const OptionalTensor& norm, double norm_eps, int64_t epilogue, const Tensor& starts,
                            const OptionalTensor& tokens, const OptionalTensor& places, const OptionalTensor& weights,
                            Tensor out) {
    const ExpertTensors experts{starts, tokens, places, weights};
    multiply_bytes<kernel>(x, weight, scale, bias, norm, norm_eps, epilogue, &experts, out);
  }

  static void matmul_gguf(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& norm,
                          double norm_eps, int64_t epilogue, Tensor out) {
    multiply_gguf(x, weight, bias, norm, norm_eps, epilogue, nullptr, out);
  }
  static void experts_gguf(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& norm, double norm_eps, int64_t epilogue, const Tensor& starts,
                           const OptionalTensor& tokens, const OptionalTensor& places, const OptionalTensor& weights,
                           Tensor out) {
    const ExpertTensors experts{starts, tokens, places, weights};
    multiply_gguf(x, weight, bias, norm, norm_eps, epilogue, &experts, out);
  }

  static void route_experts(const Tensor& logits, const OptionalTensor& bias, const OptionalTensor& expert_scale,
                            int64_t scoring, int64_t groups, int64_t top_groups, int64_t group_best, bool normalize,
                            double scale, Tensor ids, Tensor weights, Tensor starts, Tensor order, Tensor places) {
    typename Backend::Scope scope(logits);
    RouteParams p{};
    Base::check_rows(logits, "logits", kAny, kAny);
    EXPECT(logits.scalar_type() == ScalarType::Float, "logits: expected float32, got ", name_of(logits.scalar_type()));
    p.logits = pointer<float>(logits);
    p.row_stride = logits.stride(0);
    p.tokens = logits.size(0);
    p.experts = logits.size(1);
    EXPECT(p.experts > 0 && p.experts <= kMostExperts, "logits: expected 1 to ", kMostExperts, " columns, got ",
           p.experts);
    auto of_experts = [&](const OptionalTensor& t, const char* name) {
      return t ? static_cast<const float*>(vector_like(*t, name, ScalarType::Float, p.experts)) : nullptr;
    };
    p.bias = of_experts(bias, "bias");
    p.expert_scale = of_experts(expert_scale, "expert_scale");
    EXPECT(scoring >= 0 && scoring <= 2, "scoring: expected 0 (softmax), 1 (sigmoid) or 2 (top_k_softmax), got ",
           scoring);
    p.scoring = static_cast<Scoring>(scoring);
    EXPECT(groups > 0 && p.experts % groups == 0, "groups: expected a divisor of ", p.experts, " (the experts), got ",
           groups);
    EXPECT(top_groups > 0 && top_groups <= groups, "top_groups: expected 1 to ", groups, ", got ", top_groups);
    EXPECT(group_best > 0 && group_best <= p.experts / groups, "group_best: expected 1 to ", p.experts / groups,
           " (the experts of a group), got ", group_best);
    p.groups = groups;
    p.top_groups = top_groups;
    p.group_best = group_best;
    p.normalize = normalize;
    p.scale = float32(scale, "scale");
    check(ids, "ids", ScalarType::Int, {p.tokens, kAny});
    p.top_k = ids.size(1);
    const int64_t choice = p.experts / groups * top_groups;
    EXPECT(p.top_k > 0 && p.top_k <= choice, "ids: expected 1 to ", choice, " columns, got ", p.top_k);
    EXPECT(p.tokens <= INT32_MAX / p.top_k, "logits: expected at most ", INT32_MAX / p.top_k, " rows, got ", p.tokens);
    check(weights, "weights", ScalarType::Float, {p.tokens, p.top_k});
    check(starts, "starts", ScalarType::Int, {p.experts + 1});
    check(order, "order", ScalarType::Int, {p.tokens * p.top_k});
    check(places, "places", ScalarType::Int, {p.tokens, p.top_k});
    p.ids = Base::template written<int32_t>(ids);
    p.weights = Base::template written<float>(weights);
    p.starts = Base::template written<int32_t>(starts);
    p.order = Base::template written<int32_t>(order);
    p.places = Base::template written<int32_t>(places);
    Backend::route_experts(p);
  }
};

}  // namespace pybatch
