// The paged KV cache of one layer. Within a block: K is [kv_heads][head_dim][block_size] (so that scores of
// neighbouring tokens are neighbouring lanes), V is [kv_heads][block_size][head_dim], and 8-bit caches keep one fp32
// scale per token and head, [kv_heads][block_size]. Blocks are block_stride apart (a pool block holds every layer).
// The 8-bit types are int8 and, on CUDA, e4m3 (Micikevicius et al. 2022); inf and NaN show in the scale alone.
#pragma once

#include "pybatch/types.h"

namespace pybatch {

struct KvCache {
  void* k;
  void* v;
  float* k_scale;                                                                      // 8-bit types only
  float* v_scale;                                                                      // 8-bit types only
  int64_t k_block_stride, v_block_stride, k_scale_block_stride, v_scale_block_stride;  // in elements
  int64_t num_blocks, kv_heads, block_size, head_dim;
  DType dtype;

  constexpr bool has_scales() const { return size_of(dtype) == 1; }
};

// rope_kv_write: rotates q in place, and writes rotated k and plain v to their slots (slot = block * block_size +
// offset; a negative slot is skipped). The rotary table holds cos in columns [0, rotary_dim/2) and sin in the rest of
// row `position`. 8-bit types: scale = max|x| / largest over the head, where largest is 127 for int8 and 448 for e4m3,
// and q = x / scale, rounded half to even.
struct RopeKvWriteParams {
  Matrix q;                   // [tokens, heads * head_dim]
  ConstMatrix k, v;           // [tokens, kv_heads * head_dim]
  const int64_t* positions;   // [tokens]
  const int64_t* slots;       // [tokens]
  const float* rotary;        // [max_position, rotary_dim]
  const void* q_norm_weight;  // [head_dim], q's dtype, may be null: RMSNorm of each head before the rotation
  const void* k_norm_weight;
  float norm_eps;
  int64_t tokens, heads, rotary_dim;
  bool interleaved;  // pairs are (2i, 2i+1) instead of (i, i + rotary_dim/2)
  KvCache cache;
};

// copy_blocks: dst block pairs[2i+1] = src block pairs[2i], whole blocks of `block_bytes`.
struct CopyBlocksParams {
  const void* src;
  void* dst;
  const int64_t* pairs;  // [count][2]
  int64_t count, block_bytes;
};

}  // namespace pybatch
