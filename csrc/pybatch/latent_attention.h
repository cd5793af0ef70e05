// Multi-head latent attention (DeepSeek-V2, 2024), in its absorbed form: what a token keeps is one vector for all
// heads, the latent and behind it the rotated part of its key. Queries are already multiplied by the heads' key
// projections, so that they attend to it as it is; and it is the value too, which the heads' value projections multiply
// later.
//
// The cache is [blocks][block_size][width], with zeros behind the rotated part; blocks are block_stride apart. A row of
// queries has `width` elements for each head, likewise with zeros behind.
#pragma once

#include "pybatch/attention.h"
#include "pybatch/types.h"

namespace pybatch {

constexpr int64_t kMaxLatentWidth = 2048;  // that kernels have room for
constexpr int64_t kLatentStep = 16;        // that `width` is a multiple of

struct LatentCache {
  void* data;
  int64_t block_stride;  // in elements
  int64_t num_blocks, block_size, width;
  DType dtype;  // f32, f16 or bf16
};

// latent_write: writes norm(latent) and the rotated rest of kv to their slots (slot = block * block_size + offset; a
// negative slot is skipped), and the rotated end of each head of q to that head of out, whose first `latent` elements
// are left as they are. The rotary table is as in rope_kv_write; what was rotated has the pairs' first elements, then
// their second.
struct LatentWriteParams {
  ConstMatrix q;             // [tokens, heads * head_dim]
  ConstMatrix kv;            // [tokens, latent + rotary_dim]
  Matrix out;                // [tokens, heads * width], q's dtype
  const void* norm;          // [latent], q's dtype
  const int64_t* positions;  // [tokens]
  const int64_t* slots;      // [tokens]
  const float* rotary;       // [max_position, rotary_dim]
  float norm_eps;
  int64_t tokens, heads, head_dim, latent, rotary_dim;
  bool interleaved;  // pairs are (2i, 2i+1) instead of (i, i + rotary_dim/2)
  LatentCache cache;
};

// latent_attention: causal attention of a ragged batch, as paged_attention, with splits at the same places.
struct LatentParams {
  ConstMatrix q;  // [tokens, heads * width]
  Matrix out;     // [tokens, heads * latent], q's dtype
  LatentCache cache;
  const int32_t* block_tables;  // [sequences, max_blocks]
  int64_t block_table_stride;
  const int32_t* query_start;  // [sequences + 1]
  const int32_t* seq_lens;     // [sequences]
  float scale;
  int64_t tokens, sequences, heads, latent;
};

}  // namespace pybatch
