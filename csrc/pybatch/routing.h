// Which experts of a mixture each token goes to, with what weights, and the order that matmuls over experts take
// (Experts in pybatch/matmul.h).
#pragma once

#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kMostExperts = 1024;

// A token's score of each expert:
//   softmax        of the logits
//   sigmoid        of each logit
//   top_k_softmax  the logit itself; of those chosen the softmax
enum class Scoring { softmax, sigmoid, top_k_softmax };

// The top_k experts of the largest score plus bias, of equal ones the lowest, are chosen; with groups of experts /
// groups neighbours, from the top_groups groups with the largest sum of their group_best best (DeepSeek-V2 and V3). NaN
// counts as the lowest. A token's weights are its experts' scores, divided by their sum + 1e-20 if normalize, times
// scale, and times the expert's own expert_scale.
struct RouteParams {
  const float* logits;  // [tokens, experts]
  int64_t row_stride;
  const float* bias;          // [experts], may be null: for the choice alone
  const float* expert_scale;  // [experts], may be null
  int32_t* ids;               // [tokens, top_k], ascending in each row
  float* weights;             // likewise
  int32_t* starts;            // [experts + 1]
  int32_t* order;             // [tokens * top_k]: the tokens of expert 0, of expert 1, ..., ascending
  int32_t* places;            // [tokens, top_k]: where each is in `order`
  int64_t tokens, experts, top_k, groups, top_groups, group_best;
  Scoring scoring;
  bool normalize;
  float scale;
};

}  // namespace pybatch
