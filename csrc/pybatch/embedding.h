#pragma once

#include "pybatch/matmul.h"
#include "pybatch/types.h"

namespace pybatch {

// embedding: out[i] = table[ids[i]] * multiplier. The table is plain rows, or weights packed for a matmul (see
// matmul.h), so that a model with tied embeddings keeps one copy.
enum class TableLayout { rows, packed_dense, packed_scaled, packed_blocks, packed_gguf };

struct EmbeddingParams {
  const int64_t* ids;  // [count], each in [0, vocab)
  const void* table;
  const float* scale;  // [vocab]; packed_scaled (int8 or e4m3) and packed_blocks (e4m3) only
  TableLayout layout;
  DType table_dtype;
  GgufType gguf_type;  // packed_gguf only
  Matrix out;          // [count, width]
  int64_t count, vocab, width;
  float multiplier = 1.0f;
};

}  // namespace pybatch
