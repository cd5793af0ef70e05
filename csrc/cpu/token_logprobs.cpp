#include "cpu/logits.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/sampling.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

int64_t count_up_to(const LogitRow& row, Place place) {
  int64_t count = 0;
  for (int64_t i = 0; i < row.vocab; i += kLanes) {
    uint32_t lanes = lanes_at_least(row.load(i), limit_at(place, i));
    if (row.vocab - i < kLanes) lanes &= (1u << (row.vocab - i)) - 1;
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

void logprobs_row(const TokenLogprobsParams& p, int64_t r) {
  const LogitRow row{p.logits + r * p.row_stride, p.vocab};
  const float largest = largest_logit(row);
  double log_mass = 0;
  if (largest != kNever) {
    log_mass = static_cast<double>(largest) + __builtin_log(total_weight(row, largest, 1.0f));
  }
  auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - log_mass); };

  const float chosen = row.at(p.tokens[r]);
  p.logprob[r] = logprob(chosen);
  p.rank[r] = count_up_to(row, {chosen, p.tokens[r]});

  if (p.num_top == 0) return;
  int64_t bytes = candidate_capacity(p.num_top, p.vocab) * static_cast<int64_t>(sizeof(Candidate));
  auto* items = static_cast<Candidate*>(thread_scratch(0, bytes));
  sort(items, collect(row, kNever, p.num_top, items));
  for (int64_t i = 0; i < p.num_top; ++i) {
    Place place = place_of(items[i].key);
    p.top_ids[r * p.num_top + i] = place.id;
    p.top_logprobs[r * p.num_top + i] = logprob(place.logit);
  }
}

}  // namespace

void token_logprobs(const TokenLogprobsParams& p) {
  parallel_for(p.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) logprobs_row(p, row);
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
