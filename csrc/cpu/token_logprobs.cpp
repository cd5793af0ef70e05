#include "cpu/kernels.h"
#include "cpu/logits.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/sampling.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

int64_t count_up_to(const float* logits, int64_t vocab, Place place) {
  int64_t count = 0;
  for (int64_t i = 0; i < vocab; i += kLanes) {
    uint32_t lanes = lanes_at_least(load_logits(logits + i, vocab - i), limit_at(place, i));
    if (vocab - i < kLanes) lanes &= (1u << (vocab - i)) - 1;
    count += __builtin_popcount(lanes);
  }
  return count;
}

// Candidates all of weight 1, the earliest token first.
void sort(Candidate* items, int64_t count) {
  if (count < 2) return;
  int64_t half = select(items, count, static_cast<double>(count / 2));
  sort(items, half);
  sort(items + half, count - half);
}

void logprobs_row(const TokenLogprobsParams& p, int64_t row) {
  const float* logits = p.logits + row * p.row_stride;
  const float largest = largest_logit(logits, p.vocab);
  double log_mass = 0;
  if (largest != kNever) {
    log_mass = static_cast<double>(largest) + __builtin_log(total_weight(logits, p.vocab, largest, 1.0f));
  }
  auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - log_mass); };

  float chosen[kLanes];
  store(chosen, load_logits(logits + p.tokens[row], 1));
  p.logprob[row] = logprob(chosen[0]);
  p.rank[row] = count_up_to(logits, p.vocab, {chosen[0], p.tokens[row]});

  if (p.num_top == 0) return;
  int64_t bytes = candidate_capacity(p.num_top, p.vocab) * static_cast<int64_t>(sizeof(Candidate));
  auto* items = static_cast<Candidate*>(thread_scratch(0, bytes));
  sort(items, collect(logits, p.vocab, kNever, p.num_top, items));
  for (int64_t i = 0; i < p.num_top; ++i) {
    Place place = place_of(items[i].key);
    p.top_ids[row * p.num_top + i] = place.id;
    p.top_logprobs[row * p.num_top + i] = logprob(place.logit);
  }
}

}  // namespace

void token_logprobs(const TokenLogprobsParams& p) {
  parallel_for(p.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) logprobs_row(p, row);
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
