#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/routing.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr float kTaken = -__builtin_inff();
constexpr float kLeast = -__FLT_MAX__;      // of what may be chosen
constexpr int64_t kWorkPerThread = 16'384;  // experts to look at that are worth waking a thread for

// Of numbers of experts, in whole vectors.
constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Takes the largest of x, of equal ones the first. What is behind the last is taken already.
int64_t take_largest(float* x, int64_t n) {
  F32x16 largest = load(x);
  for (int64_t i = kLanes; i < n; i += kLanes) largest = max(largest, load(x + i));
  const F32x16 limit = broadcast(reduce_max(largest));
  for (int64_t i = 0;; i += kLanes) {
    const uint32_t lanes = lanes_at_least(load(x + i), limit);
    if (lanes == 0) continue;
    i += __builtin_ctz(lanes);
    x[i] = kTaken;
    return i;
  }
}

// Sixteen numbers, or what there are and then `others`.
F32x16 load_before(const float* x, int64_t n, float others) {
  return n < kLanes ? select_first(n, load_first(x, n), broadcast(others)) : load(x);
}

// x = exp(x - the largest), not yet divided by the sum, which is returned.
float exponentials(float* x, int64_t n) {
  F32x16 largest = broadcast(kLeast), sum = zeros();
  for (int64_t i = 0; i < n; i += kLanes) largest = max(load_before(x + i, n - i, kTaken), largest);
  const F32x16 most = broadcast(reduce_max(largest));
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32x16 e = exp(load_before(x + i, n - i, kTaken) - most);  // of kTaken 0
    store_first(x + i, e, n - i);
    sum = sum + e;
  }
  return reduce_add(sum);
}

void score(const RouteParams& p, const float* logits, float* scores) {
  const int64_t n = p.experts;
  std::memcpy(scores, logits, static_cast<size_t>(n) * sizeof(float));
  if (p.scoring == Scoring::sigmoid) {
    const F32x16 one = broadcast(1.0f);
    for (int64_t i = 0; i < n; i += kLanes) {
      store_first(scores + i, one / (one + exp(zeros() - load_first(scores + i, n - i))), n - i);
    }
  } else if (p.scoring == Scoring::softmax) {
    const F32x16 sum = broadcast(exponentials(scores, n));
    for (int64_t i = 0; i < n; i += kLanes) store_first(scores + i, load_first(scores + i, n - i) / sum, n - i);
  }
}

// Takes all but the top_groups groups out of x. `groups` and `group`: room for numbers of groups, and of one group.
void keep_best_groups(const RouteParams& p, float* x, float* groups, float* group) {
  const int64_t size = p.experts / p.groups;
  for (int64_t i = 0; i < padded(p.groups); ++i) groups[i] = kTaken;
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t i = 0; i < padded(size); ++i) group[i] = i < size ? x[g * size + i] : kTaken;
    float sum = 0.0f;
    for (int64_t i = 0; i < p.group_best; ++i) sum += x[g * size + take_largest(group, size)];
    groups[g] = sum > kLeast ? sum : kLeast;
  }
  for (int64_t i = 0; i < p.top_groups; ++i) take_largest(groups, p.groups);
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t i = 0; groups[g] != kTaken && i < size; ++i) x[g * size + i] = kTaken;
  }
}

// Writes the experts of a token and their weights. `room`: for numbers of experts, four times.
void route(const RouteParams& p, const float* logits, float* room, int32_t* ids, float* weights) {
  const int64_t n = p.experts, row = padded(n);
  float *scores = room, *choice = room + row;
  score(p, logits, scores);
  for (int64_t i = 0; i < row; i += kLanes) {
    const F32x16 bias = p.bias != nullptr ? load_first(p.bias + i, n - i) : zeros();
    store(choice + i, max(load_first(scores + i, n - i) + bias, broadcast(kLeast)));  // max(NaN, y) is y
  }
  for (int64_t i = n; i < row; ++i) choice[i] = kTaken;
  if (p.top_groups < p.groups) keep_best_groups(p, choice, room + 2 * row, room + 3 * row);
  for (int64_t count = 0; count < p.top_k; ++count) {
    const auto id = static_cast<int32_t>(take_largest(choice, n));
    int64_t at = count;
    for (; at > 0 && ids[at - 1] > id; --at) ids[at] = ids[at - 1];
    ids[at] = id;
  }
  for (int64_t i = 0; i < p.top_k; ++i) weights[i] = scores[ids[i]];
  float divisor = 1.0f;
  if (p.scoring == Scoring::top_k_softmax) divisor = exponentials(weights, p.top_k);
  if (p.normalize) {
    divisor = 1e-20f;
    for (int64_t i = 0; i < p.top_k; ++i) divisor += weights[i];
  }
  for (int64_t i = 0; i < p.top_k; ++i) {
    weights[i] = weights[i] / divisor * p.scale * (p.expert_scale != nullptr ? p.expert_scale[ids[i]] : 1.0f);
  }
}

// Sorts the tokens by their experts, by counting.
void sort_by_expert(const RouteParams& p) {
  const int64_t rows = p.tokens * p.top_k, bytes = (p.experts + 1) * static_cast<int64_t>(sizeof(int32_t));
  auto* next = static_cast<int32_t*>(thread_scratch(0, bytes));  // place of each expert
  std::memset(next, 0, static_cast<size_t>(bytes));
  for (int64_t i = 0; i < rows; ++i) ++next[p.ids[i] + 1];
  for (int64_t e = 0; e < p.experts; ++e) next[e + 1] += next[e];
  std::memcpy(p.starts, next, static_cast<size_t>(bytes));
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t at = next[p.ids[i]]++;
    p.places[i] = at;
    p.order[at] = static_cast<int32_t>(i / p.top_k);
  }
}

}  // namespace

void route_experts(const RouteParams& p) {
  parallel_for(p.tokens, kWorkPerThread / (p.experts * (p.top_k + 8)) + 1, [&](int64_t token, int64_t end) {
    auto* room = static_cast<float*>(thread_scratch(0, 4 * padded(p.experts) * static_cast<int64_t>(sizeof(float))));
    for (; token < end; ++token) {
      route(p, p.logits + token * p.row_stride, room, p.ids + token * p.top_k, p.weights + token * p.top_k);
    }
  });
  sort_by_expert(p);
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
