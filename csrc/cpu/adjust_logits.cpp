#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/sampling.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// `count` has an entry for every token, and only those that the row's history sets are read.
void penalise_row(const AdjustLogitsParams& p, int64_t row, float* logits, int32_t* count) {
  constexpr int32_t kDone = -1;
  const int64_t* begin = p.history + p.history_start[row];
  const int64_t* output = p.history + p.output_start[row];
  const int64_t* end = p.history + p.history_start[row + 1];
  for (const int64_t* id = begin; id < end; ++id) count[*id] = 0;
  for (const int64_t* id = output; id < end; ++id) ++count[*id];
  for (const int64_t* id = begin; id < end; ++id) {
    int32_t& seen = count[*id];
    if (seen == kDone) continue;
    float& logit = logits[*id];
    logit = logit > 0 ? logit / p.repetition[row] : logit * p.repetition[row];
    if (seen > 0) logit -= p.presence[row] + p.frequency[row] * static_cast<float>(seen);
    seen = kDone;
  }
}

}  // namespace

void adjust_logits(const AdjustLogitsParams& p) {
  if (p.rows == 0) return;
  int64_t ids_per_row = (p.history_start[p.rows] + p.bias_start[p.rows]) / p.rows;
  parallel_for(p.rows, 1 + 4096 / (ids_per_row + 1), [&](int64_t begin, int64_t end) {
    auto* count = static_cast<int32_t*>(thread_scratch(0, p.vocab * static_cast<int64_t>(sizeof(int32_t))));
    for (int64_t row = begin; row < end; ++row) {
      float* logits = p.logits + row * p.row_stride;
      for (int64_t i = p.bias_start[row]; i < p.bias_start[row + 1]; ++i) logits[p.bias_ids[i]] += p.bias_values[i];
      penalise_row(p, row, logits, count);
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
