// The ops on logits.
#pragma once

#include "pybatch/sampling.h"
#include "torch_ops/checks.h"

namespace pybatch {

template <class Backend>
struct SamplingOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::check_rows, Base::expect_ids_in_range, Base::visible;

  template <class Params>
  static Params params_of(const Tensor& logits) {
    check_rows(logits, "logits", kAny, kAny);
    EXPECT(logits.scalar_type() == ScalarType::Float, "logits: expected float32, got ", name_of(logits.scalar_type()));
    EXPECT(logits.size(1) > 0, "logits: expected at least one column");
    Params p{};
    p.logits = mutable_pointer<float>(logits);
    p.row_stride = logits.stride(0);
    p.rows = logits.size(0);
    p.vocab = logits.size(1);
    return p;
  }

  // Offsets of a ragged list: ascending, from 0 to the list's length.
  static const int64_t* ragged(const Tensor& starts, const char* name, int64_t rows, int64_t length) {
    check(starts, name, ScalarType::Long, {rows + 1});
    const int64_t* start = pointer<int64_t>(starts);
    bool ascending = !Backend::kHostReadable || (start[0] == 0 && start[rows] == length);
    for (int64_t i = 0; i < visible(rows); ++i) ascending = ascending && start[i] <= start[i + 1];
    EXPECT(ascending, name, ": expected ascending offsets from 0 to ", length);
    return start;
  }

  static void adjust_logits(Tensor logits, const Tensor& repetition, const Tensor& presence, const Tensor& frequency,
                            const Tensor& history, const Tensor& history_start, const Tensor& output_start,
                            const Tensor& bias_ids, const Tensor& bias_values, const Tensor& bias_start) {
    typename Backend::Scope scope(logits);
    auto p = params_of<AdjustLogitsParams>(logits);
    check(repetition, "repetition", ScalarType::Float, {p.rows});
    check(presence, "presence", ScalarType::Float, {p.rows});
    check(frequency, "frequency", ScalarType::Float, {p.rows});
    p.repetition = pointer<float>(repetition);
    p.presence = pointer<float>(presence);
    p.frequency = pointer<float>(frequency);
    check(history, "history", ScalarType::Long, {kAny});
    expect_ids_in_range(history, "history", p.vocab);
    p.history = pointer<int64_t>(history);
    p.history_start = ragged(history_start, "history_start", p.rows, history.size(0));
    check(output_start, "output_start", ScalarType::Long, {p.rows});
    p.output_start = pointer<int64_t>(output_start);
    for (int64_t i = 0; i < visible(p.rows); ++i) {
      EXPECT(p.output_start[i] >= p.history_start[i] && p.output_start[i] <= p.history_start[i + 1],
             "output_start: expected within the history of row ", i);
    }
    check(bias_ids, "bias_ids", ScalarType::Long, {kAny});
    expect_ids_in_range(bias_ids, "bias_ids", p.vocab);
    check(bias_values, "bias_values", ScalarType::Float, {bias_ids.size(0)});
    p.bias_ids = pointer<int64_t>(bias_ids);
    p.bias_values = pointer<float>(bias_values);
    p.bias_start = ragged(bias_start, "bias_start", p.rows, bias_ids.size(0));
    Backend::adjust_logits(p);
  }

  static void sample(const Tensor& logits, const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                     const Tensor& min_p, const Tensor& seeds, const Tensor& positions, Tensor out) {
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
    p.out = mutable_pointer<int64_t>(out);
    for (int64_t i = 0; i < visible(p.rows); ++i) {
      EXPECT(p.temperature[i] >= 0, "temperature: expected 0 or more, got ", p.temperature[i], " at ", i);
      EXPECT(p.top_p[i] > 0 && p.top_p[i] <= 1, "top_p: expected in (0, 1], got ", p.top_p[i], " at ", i);
      EXPECT(p.min_p[i] >= 0 && p.min_p[i] <= 1, "min_p: expected in [0, 1], got ", p.min_p[i], " at ", i);
    }
    Backend::sample(p);
  }

  static void token_logprobs(const Tensor& logits, const Tensor& tokens, Tensor logprob, Tensor rank, Tensor top_ids,
                             Tensor top_logprobs) {
    typename Backend::Scope scope(logits);
    auto p = params_of<TokenLogprobsParams>(logits);
    check(tokens, "tokens", ScalarType::Long, {p.rows});
    expect_ids_in_range(tokens, "tokens", p.vocab);
    check(logprob, "logprob", ScalarType::Float, {p.rows});
    check(rank, "rank", ScalarType::Long, {p.rows});
    check(top_ids, "top_ids", ScalarType::Long, {p.rows, kAny});
    p.num_top = top_ids.size(1);
    EXPECT(p.num_top <= p.vocab, "top_ids: expected at most ", p.vocab, " columns (the vocabulary), got ", p.num_top);
    check(top_logprobs, "top_logprobs", ScalarType::Float, {p.rows, p.num_top});
    p.tokens = pointer<int64_t>(tokens);
    p.logprob = mutable_pointer<float>(logprob);
    p.rank = mutable_pointer<int64_t>(rank);
    p.top_ids = mutable_pointer<int64_t>(top_ids);
    p.top_logprobs = mutable_pointer<float>(top_logprobs);
    Backend::token_logprobs(p);
  }
};

}  // namespace pybatch
