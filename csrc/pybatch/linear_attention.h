// Linear attention: what a sequence has seen is a state of one size, however long the sequence is.
//
// The tokens of sequence s are rows query_start[s] .. query_start[s+1], at least one. Its state before them is in slot
// source[s] (negative: it begins, with zeros), and the one after them goes to slot destination[s], which is nobody's
// source. So a call that failed can be made again, and several sequences can go on from one state. A negative
// destination marks padding: its rows of out are zeros.
//
// Tokens are taken one after another, whatever number of them comes in a call: a prompt in one piece, in any pieces,
// and decoding give the same bits.
#pragma once

#include "pybatch/types.h"

namespace pybatch {

struct StateBatch {
  const int32_t* query_start;  // [sequences + 1]
  const int32_t* source;       // [sequences]
  const int32_t* destination;  // [sequences]
  int64_t sequences, tokens;
};

constexpr int64_t kMostTaps = 8;

// causal_conv: a convolution over time of each channel by itself, then SiLU:
//   out[t] = silu(sum of weight[j] * x[t - taps + 1 + j])
// A state is a sequence's last taps - 1 rows of x.
struct CausalConvParams {
  ConstMatrix x;         // [tokens, channels]
  Matrix out;            // [tokens, channels], x's dtype
  const void* weight;    // [taps, channels], x's dtype
  void* state;           // [slots][taps - 1][channels], x's dtype
  int64_t state_stride;  // between slots, in elements
  int64_t channels, taps;
  StateBatch batch;
};

constexpr int64_t kStateLanes = 16;  // a state's rows are as long as a multiple of this
constexpr int64_t kMostKeyDim = 256;
constexpr float kUnitEps = 1e-6f;  // of x / sqrt(sum(x^2) + eps)

// gated_delta_rule (Yang, Kautz and Hatamizadeh 2024): each value head has a state S [key_dim][value_dim] in fp32,
// which a token first decays and then corrects, so that its key finds its value:
//   S = S * exp(-rate * softplus(a + dt_bias))
//   S = S + k (x) (v - S^T k) * sigmoid(b)
//   out = S^T q
// q and k are normalised to length 1, and q is divided by sqrt(key_dim). Value heads h * n .. h * n + n - 1 share key
// head h, where n = value_heads / key_heads. Sums over key_dim run in fp32 in one fixed order.
struct GatedDeltaParams {
  ConstMatrix qkv;       // [tokens, 2 * key_heads * key_dim + value_heads * value_dim]: queries, keys, values
  ConstMatrix a, b;      // [tokens, value_heads], qkv's dtype
  const float* rate;     // [value_heads]
  const float* dt_bias;  // [value_heads]
  Matrix out;            // [tokens, value_heads * value_dim], qkv's dtype
  float* state;          // [slots][value_heads][key_dim][state_width()]
  int64_t state_stride;  // between slots, in elements
  int64_t key_heads, value_heads, key_dim, value_dim;
  StateBatch batch;

  constexpr int64_t state_width() const { return (value_dim + kStateLanes - 1) / kStateLanes * kStateLanes; }
};

}  // namespace pybatch
