// The paged KV cache of one layer. Within a block: K is [kv_heads][head_dim][block_size] (so that scores of
// neighbouring tokens are neighbouring lanes), V is [kv_heads][block_size][head_dim], and quantised caches keep fp16
// scales. Blocks are block_stride apart (a pool block holds every layer).
//
// The 8-bit types are int8 and, on CUDA, e4m3 (Micikevicius et al. 2022), with one scale per token and head,
// [kv_heads][block_size]. i4 has one per token, head and group of kInt4Group elements of the head (fewer in the last if
// the head dimension is not a multiple), [kv_heads][groups][block_size]. inf and NaN show in the scales alone.
//
// i4 codes are signed, and packed so that a shift leaves two neighbours to be multiplied in the halves of a 32-bit
// lane, two elements of a key or two tokens of a value, and that each token has words of its own:
//   K: 32-bit words [kv_heads][head_dim / 8][block_size]. Word w of a token has, from the lowest bits on, its elements
//      8w + 0, 2, 4, 6, 1, 3, 5, 7.
//   V: 16-bit words [kv_heads][block_size / 4][head_dim / 4][4]: four tokens side by side. A group of n elements is n /
//   4
//      words of a token; word u of it has, from the lowest bits on, its elements u, u + n/4, u + 2n/4, u + 3n/4.
#pragma once

#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kInt4Group = 32;

struct KvCache {
  void* k;
  void* v;
  void* k_scale;  // fp16; quantised types only
  void* v_scale;
  int64_t k_block_stride, v_block_stride, k_scale_block_stride, v_scale_block_stride;  // in elements, of i4 in bytes
  int64_t num_blocks, kv_heads, block_size, head_dim;
  DType dtype;

  constexpr bool has_scales() const { return size_of(dtype) == 1; }
  // Scales per token and head.
  constexpr int64_t groups() const { return dtype == DType::i4 ? (head_dim + kInt4Group - 1) / kInt4Group : 1; }
};

// rope_kv_write: rotates q in place, and writes rotated k and plain v to their slots (slot = block * block_size +
// offset; a negative slot is skipped). The rotary table holds cos in columns [0, rotary_dim/2) and sin in the rest of
// row `position`.
//
// Quantised types: scale = max|x| / largest over the head, where largest is 127 for int8 and 448 for e4m3, rounded to
// fp16, and q = x / scale, rounded half to even and clamped to +-largest. i4: scale = e / -8 over the group, where e is
// its element of largest magnitude (of two, the negative one), and q is clamped to [-8, 7]: all sixteen codes are used,
// which takes a fifth off the squared error of [-7, 7]. A scale is NaN where an x is not finite.
//
// key_divisor and key_offset say how the cache keeps keys: as rotated k / key_divisor - key_offset, with q multiplied
// by key_divisor. The scores of a query are all less by the same number then, which a softmax does not see.
struct RopeKvWriteParams {
  Matrix q;                   // [tokens, heads * head_dim]
  ConstMatrix k, v;           // [tokens, kv_heads * head_dim]
  const int64_t* positions;   // [tokens]
  const int64_t* slots;       // [tokens], null: nothing is written, and there are no k and v
  const float* rotary;        // [max_position, rotary_dim]
  const void* q_norm_weight;  // q's dtype, may be null: a norm of each head
  const void* k_norm_weight;
  const void* v_norm_weight;  // [head_dim]: likewise, of v
  const float* key_divisor;   // [kv_heads, head_dim], powers of two, alike in the two elements of a pair; may be null
  const float* key_offset;    // [kv_heads, head_dim], may be null
  const float* query_scale;   // [max_position], may be null: q is multiplied by that of its position
  float norm_eps;
  int64_t tokens, heads, rotary_dim;
  int64_t q_norm_stride, k_norm_stride;  // from a head's weights to the next one's; 0: all have the same [head_dim]
  bool layer_norm;                       // instead of RMSNorm
  bool norm_last;                        // after the rotation instead of before it
  bool interleaved;                      // pairs are (2i, 2i+1) instead of (i, i + rotary_dim/2)
  KvCache cache;

  constexpr int64_t slot(int64_t token) const { return slots != nullptr ? slots[token] : -1; }
};

// copy_blocks: dst block pairs[2i+1] = src block pairs[2i], whole blocks of `block_bytes`.
struct CopyBlocksParams {
  const void* src;
  void* dst;
  const int64_t* pairs;  // [count][2]
  int64_t count, block_bytes;
};

}  // namespace pybatch
