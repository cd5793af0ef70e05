// The ops on logits.
#pragma once

#include "pybatch/sampling.h"
#include "torch_ops/checks.h"
#include "torch_ops/values.h"

namespace pybatch {

template <class Backend>
struct SamplingOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::check_rows;

  template <class Params>
  static Params params_of(const Tensor& logits) {
    check_rows(logits, "logits", kAny, kAny);
    EXPECT(logits.scalar_type() == ScalarType::Float, "logits: expected float32, got ", name_of(logits.scalar_type()));
    EXPECT(logits.size(1) > 0, "logits: expected at least one column");
    EXPECT(logits.size(1) <= INT32_MAX, "logits: expected at most ", INT32_MAX, " columns, got ", logits.size(1));
    Params p{};
    p.logits = static_cast<float*>(logits.data_ptr());
    p.row_stride = logits.stride(0);
    p.rows = logits.size(0);
    p.vocab = logits.size(1);
    return p;
  }

  static const int64_t* ragged(const Tensor& starts, const char* name, int64_t rows, int64_t length) {
    check(starts, name, ScalarType::Long, {rows + 1});
    Backend::verify(Offsets{name, pointer<int64_t>(starts), rows, length}, {starts.data_ptr()});
    return pointer<int64_t>(starts);
  }

  static void scale_logits(Tensor logits, double scale, double soft_cap) {
    typename Backend::Scope scope(logits);
    auto p = params_of<ScaleLogitsParams>(logits);
    p.logits = Base::template written<float>(logits);
    p.scale = float32(scale, "scale");
    p.soft_cap = float32(soft_cap, "soft_cap");
    EXPECT(p.soft_cap >= 0, "soft_cap: expected 0 (none) or more, got ", soft_cap);
    if (p.rows > 0) Backend::scale_logits(p);
  }

  static void adjust_logits(Tensor logits, const Tensor& repetition, const Tensor& presence, const Tensor& frequency,
                            const Tensor& history, const Tensor& history_start, const Tensor& output_start,
                            const Tensor& bias_ids, const Tensor& bias_values, const Tensor& bias_start) {
    typename Backend::Scope scope(logits);
    auto p = params_of<AdjustLogitsParams>(logits);
    p.logits = Base::template written<float>(logits);
    check(repetition, "repetition", ScalarType::Float, {p.rows});
    check(presence, "presence", ScalarType::Float, {p.rows});
    check(frequency, "frequency", ScalarType::Float, {p.rows});
    p.repetition = pointer<float>(repetition);
    p.presence = pointer<float>(presence);
    p.frequency = pointer<float>(frequency);
    check(history, "history", ScalarType::Long, {kAny});
    p.history = pointer<int64_t>(history);
    Backend::verify(Ids{"history", p.history, history.size(0), p.vocab}, {p.history});
    p.history_start = ragged(history_start, "history_start", p.rows, history.size(0));
    check(output_start, "output_start", ScalarType::Long, {p.rows});
    p.output_start = pointer<int64_t>(output_start);
    Backend::verify(OutputStarts{p.output_start, p.history_start, p.rows}, {p.output_start, p.history_start});
    check(bias_ids, "bias_ids", ScalarType::Long, {kAny});
    p.bias_ids = pointer<int64_t>(bias_ids);
    Backend::verify(Ids{"bias_ids", p.bias_ids, bias_ids.size(0), p.vocab}, {p.bias_ids});
    check(bias_values, "bias_values", ScalarType::Float, {bias_ids.size(0)});
    p.bias_values = pointer<float>(bias_values);
    p.bias_start = ragged(bias_start, "bias_start", p.rows, bias_ids.size(0));
    if (p.rows > 0) Backend::adjust_logits(p);
  }

  static void sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                     const Tensor& min_p, const Tensor& seeds, const Tensor& positions, const OptionalTensor& masks,
                     const OptionalTensor& mask_rows, Tensor out) {
    typename Backend::Scope scope(logits);
    auto p = params_of<SampleParams>(logits);
    check(temperature, "temperature", ScalarType::Float, {p.rows});
    check(top_k, "top_k", ScalarType::Long, {p.rows});
    check(top_p, "top_p", ScalarType::Float, {p.rows});
    check(min_p, "min_p", ScalarType::Float, {p.rows});
    check(seeds, "seeds", ScalarType::Long, {p.rows});
    check(positions, "positions", ScalarType::Long, {p.rows});
    check(out, "out", ScalarType::Long, {p.rows});
    p.temperature = pointer<float>(temperature);
    p.top_k = pointer<int64_t>(top_k);
    p.top_p = pointer<float>(top_p);
    p.min_p = pointer<float>(min_p);
    p.seeds = pointer<int64_t>(seeds);
    p.positions = pointer<int64_t>(positions);
    EXPECT(masks.has_value() == mask_rows.has_value(), "mask_rows: expected with masks, and only with them");
    if (masks.has_value()) {
      check(*masks, "masks", ScalarType::Int, {kAny, (p.vocab + 31) / 32});
      check(*mask_rows, "mask_rows", ScalarType::Long, {p.rows});
      p.masks = pointer<uint32_t>(*masks);
      p.mask_rows = pointer<int64_t>(*mask_rows);
      Backend::verify(MaskRows{p.mask_rows, p.rows, masks->size(0)}, {p.mask_rows});
    }
    p.out = Base::template written<int64_t>(out);
    Backend::verify(SamplingSettings{p.temperature, p.top_p, p.min_p, p.rows}, {p.temperature, p.top_p, p.min_p});
    if (p.rows > 0) Backend::sample(p);
  }

  static void token_logprobs(const Tensor& logits, const Tensor& tokens, Tensor logprob, Tensor rank, Tensor top_ids,
                             Tensor top_logprobs) {
    typename Backend::Scope scope(logits);
    auto p = params_of<TokenLogprobsParams>(logits);
    check(tokens, "tokens", ScalarType::Long, {p.rows});
    check(logprob, "logprob", ScalarType::Float, {p.rows});
    check(rank, "rank", ScalarType::Long, {p.rows});
    check(top_ids, "top_ids", ScalarType::Long, {p.rows, kAny});
    p.num_top = top_ids.size(1);
    EXPECT(p.num_top <= p.vocab, "top_ids: expected at most ", p.vocab, " columns (the vocabulary), got ", p.num_top);
    check(top_logprobs, "top_logprobs", ScalarType::Float, {p.rows, p.num_top});
    p.tokens = pointer<int64_t>(tokens);
    Backend::verify(Ids{"tokens", p.tokens, p.rows, p.vocab}, {p.tokens});
    p.logprob = Base::template written<float>(logprob);
    p.rank = Base::template written<int64_t>(rank);
    p.top_ids = Base::template written<int64_t>(top_ids);
    p.top_logprobs = Base::template written<float>(top_logprobs);
    if (p.rows > 0) Backend::token_logprobs(p);
  }
};

}  // namespace pybatch
