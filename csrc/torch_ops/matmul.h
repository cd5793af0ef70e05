// The matmuls, by one matrix or by experts, and the routing of rows to experts.
#pragma once

#include "pybatch/matmul.h"
#include "pybatch/routing.h"
#include "torch_ops/packed_weights.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct MatmulOps : PackedWeights<Backend> {
  using Base = PackedWeights<Backend>;
  using Base::check, Base::input, Base::output, Base::vector_like;
  using Base::check_packed_bytes, Base::check_packed_dense, Base::gguf_type;

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
