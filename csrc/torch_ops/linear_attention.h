// The ops of linear attention layers: convolution, gated delta rule, gated norm.
#pragma once

#include "pybatch/linear_attention.h"
#include "pybatch/norm.h"
#include "torch_ops/checks.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct LinearAttentionOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::expect_present, Base::input, Base::output, Base::vector_like;

  // Slots that may be apart, since all layers of a state lie side by side; returns the elements between them.
  static int64_t check_state(const Tensor& t, ScalarType type, std::initializer_list<int64_t> slot) {
    expect_present(t, "state");
    EXPECT(t.scalar_type() == type, "state: expected ", name_of(type), ", got ", name_of(t.scalar_type()));
    const auto dim = static_cast<int64_t>(slot.size()) + 1;
    int64_t stride = 1;
    bool fits = t.dim() == dim;
    for (int64_t i = dim - 1; fits && i > 0; --i) {
      fits = t.size(i) == slot.begin()[i - 1];
      EXPECT(!fits || t.size(i) <= 1 || t.stride(i) == stride, "state: expected contiguous slots");
      stride *= slot.begin()[i - 1];
    }
    EXPECT(fits, "state: expected slots of shape ", shape_of(slot), ", got ", shape_of(t));
    EXPECT(t.size(0) <= 1 || t.stride(0) >= stride, "state: expected slots that do not overlap");
    Backend::writes(t);
    return t.stride(0);
  }

  static StateBatch state_batch(const Tensor& query_start, const Tensor& source, const Tensor& destination,
                                int64_t tokens, int64_t slots) {
    check(source, "source", ScalarType::Int, {kAny});
    const int64_t sequences = source.size(0);
    check(destination, "destination", ScalarType::Int, {sequences});
    check(query_start, "query_start", ScalarType::Int, {sequences + 1});
    const StateBatch batch{pointer<int32_t>(query_start), pointer<int32_t>(source), pointer<int32_t>(destination),
                           sequences, tokens};
    Backend::verify(States{batch, slots}, {batch.query_start, batch.source, batch.destination});
    return batch;
  }

  static void causal_conv(const Tensor& x, const Tensor& weight, Tensor state, const Tensor& query_start,
                          const Tensor& source, const Tensor& destination, Tensor out) {
    typename Backend::Scope scope(x);
    CausalConvParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.channels = x.size(1);
    p.out = output(out, "out", x.size(0), p.channels);
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    check(weight, "weight", x.scalar_type(), {kAny, p.channels});
    p.taps = weight.size(0);
    EXPECT(p.taps >= 2 && p.taps <= kMostTaps, "weight: expected 2 to ", kMostTaps, " rows (taps), got ", p.taps);
    p.weight = weight.data_ptr();
    p.state_stride = check_state(state, x.scalar_type(), {p.taps - 1, p.channels});
    p.state = state.data_ptr();
    EXPECT(x.size(0) == 0 || out.data_ptr() != x.data_ptr(), "out: expected other memory than x's");
    p.batch = state_batch(query_start, source, destination, x.size(0), state.size(0));
    if (out.numel() > 0) Backend::causal_conv(p);
  }

  static void gated_delta_rule(const Tensor& qkv, const Tensor& a, const Tensor& b, const Tensor& rate,
                               const Tensor& dt_bias, Tensor state, const Tensor& query_start, const Tensor& source,
                               const Tensor& destination, Tensor out) {
    typename Backend::Scope scope(qkv);
    GatedDeltaParams p{};
    p.qkv = input(qkv, "qkv", kAny, kAny);
    const int64_t tokens = qkv.size(0);
    check(rate, "rate", ScalarType::Float, {kAny});
    p.value_heads = rate.size(0);
    EXPECT(p.value_heads > 0, "rate: expected at least one value head");
    p.rate = pointer<float>(rate);
    p.dt_bias = static_cast<const float*>(vector_like(dt_bias, "dt_bias", ScalarType::Float, p.value_heads));
    p.out = output(out, "out", tokens, kAny);
    expect_same_type(p.out.dtype, "out", p.qkv.dtype, "qkv");
    p.value_dim = out.size(1) / p.value_heads;
    EXPECT(p.value_dim > 0 && out.size(1) % p.value_heads == 0,
           "out: expected a width that is a multiple of the value heads ", p.value_heads, ", got ", out.size(1));
    expect_given(state, "state");
    EXPECT(state.dim() == 4, "state: expected 4 dimensions, got shape ", shape_of(state));
    p.key_dim = state.size(2);
    EXPECT(p.key_dim > 0 && p.key_dim <= kMostKeyDim, "state: expected a key dimension of 1 to ", kMostKeyDim, ", got ",
           p.key_dim);
    p.state_stride = check_state(state, ScalarType::Float, {p.value_heads, p.key_dim, p.state_width()});
    p.state = static_cast<float*>(state.data_ptr());
    const int64_t keys = qkv.size(1) - out.size(1);
    p.key_heads = keys / 2 / p.key_dim;
    EXPECT(p.key_heads > 0 && keys == 2 * p.key_heads * p.key_dim && p.value_heads % p.key_heads == 0,
           "qkv: expected queries and keys of ", p.key_dim, " elements for heads of which the ", p.value_heads,
           " value heads are a multiple, then ", out.size(1), " values, got a width of ", qkv.size(1));
    p.a = input(a, "a", tokens, p.value_heads);
    expect_same_type(p.a.dtype, "a", p.qkv.dtype, "qkv");
    p.b = input(b, "b", tokens, p.value_heads);
    expect_same_type(p.b.dtype, "b", p.qkv.dtype, "qkv");
    p.batch = state_batch(query_start, source, destination, tokens, state.size(0));
    if (out.numel() > 0) Backend::gated_delta_rule(p);
  }

  static void gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, double eps, Tensor out) {
    typename Backend::Scope scope(x);
    GatedNormParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.rows = x.size(0);
    check(weight, "weight", x.scalar_type(), {kAny});
    p.width = weight.size(0);
    EXPECT(p.width > 0 && x.size(1) % p.width == 0, "x: expected a width that is a multiple of weight's ", p.width,
           ", got ", x.size(1));
    p.weight = weight.data_ptr();
    p.heads = x.size(1) / p.width;
    p.gate = input(gate, "gate", p.rows, x.size(1));
    expect_same_type(p.gate.dtype, "gate", p.x.dtype, "x");
    p.out = output(out, "out", p.rows, x.size(1));
    expect_same_type(p.out.dtype, "out", p.x.dtype, "x");
    p.eps = float32(eps, "eps");
    if (out.numel() > 0) Backend::gated_rms_norm(p);
  }
};

}  // namespace pybatch
