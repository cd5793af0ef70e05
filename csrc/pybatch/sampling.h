#pragma once

#include "pybatch/types.h"

namespace pybatch {

// scale_logits: in place, logits * scale, and then with a cap, cap * tanh(logits / cap).
struct ScaleLogitsParams {
  float* logits;  // [rows, vocab]
  int64_t row_stride, rows, vocab;
  float scale;
  float soft_cap;  // 0: none
};

// adjust_logits: in place, per row, in this order: logits += bias at the listed ids; then for tokens seen in prompt or
// output the repetition penalty (Keskar et al. 2019: divide positive, multiply negative logits), then for tokens seen
// in the output presence + frequency * count is subtracted (OpenAI).
struct AdjustLogitsParams {
  float* logits;  // [rows, vocab]
  int64_t row_stride, rows, vocab;
  const float* repetition;       // [rows], 1: none
  const float* presence;         // [rows]
  const float* frequency;        // [rows]
  const int64_t* history;        // prompt then output token ids of every row
  const int64_t* history_start;  // [rows + 1]
  const int64_t* output_start;   // [rows], index into history where the row's output begins
  const int64_t* bias_ids;       // ids, ragged
  const float* bias_values;      // same length
  const int64_t* bias_start;     // [rows + 1]
};

// sample: a row may have a mask, of which bit i % 32 of word i / 32 says whether token i may be drawn; any other counts
// as one of logit -inf, and where the mask allows none the row gets -1. Per row, temperature 0 takes the largest logit
// (lowest id on a tie). Else softmax(logits / temperature) cut to the top_k largest, then to the smallest set of at
// least top_p mass, then to those of at least min_p times the largest; ties go to the lower id. Those that are left
// race: each has an exponential variate of its own, and the least variate / probability wins, which every token does as
// often as it is likely. Variates depend on (seed, position, id) alone, so that two models' draws at one position are
// as a rule the same token, the more so the more alike their distributions (Daliri, Musco and Suresh 2024).
//
// They are made by groups of 16 tokens, the ids that differ in bits 4 to 7 alone, so that most groups are ruled out by
// one number. The least variate of 16 is one of rate 16; it is any member's alike, and the others exceed it by variates
// of rate 1 (Renyi 1953). Philox4x32-10 (Salmon et al. 2011), keyed by seed, says both: at counter (position, group, 0)
// word 0 gives the least variate and the top 4 bits of word 1 whose it is, at (position, id, 1) word 0 gives what a
// token's exceeds it by. A word is -log(1 - u), with u its middle in units of 2^-32.
struct SampleParams {
  const float* logits;  // [rows, vocab]
  int64_t row_stride, rows, vocab;
  const float* temperature;  // [rows]
  const int64_t* top_k;      // [rows], <= 0: all
  const float* top_p;        // [rows], (0, 1]
  const float* min_p;        // [rows], [0, 1]
  const int64_t* seeds;      // [rows]
  const int64_t* positions;  // [rows]
  const uint32_t* masks;     // [masks, ceil(vocab / 32)], or null; bits past vocab are ignored
  const int64_t* mask_rows;  // [rows], which mask is the row's, < 0: none; null like masks
  int64_t* out;              // [rows]
};

// token_logprobs: log_softmax(logits) at `tokens` and at the num_top largest, and the rank of `tokens` (1: the largest;
// ties count by id).
struct TokenLogprobsParams {
  const float* logits;  // [rows, vocab]
  int64_t row_stride, rows, vocab;
  const int64_t* tokens;  // [rows]
  int64_t num_top;
  float* logprob;       // [rows]
  int64_t* rank;        // [rows]
  int64_t* top_ids;     // [rows, num_top], descending
  float* top_logprobs;  // [rows, num_top]
};

}  // namespace pybatch
