// embedding: a block a row, gathering from plain rows or from the panels of a packed matmul weight.
#include "cuda/gguf_blocks.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace pybatch::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) embedding_kernel(EmbeddingParams p) {
  begin_kernel();
  const int64_t row = blockIdx.x, id = p.ids[row];
  if (p.layout == TableLayout::packed_gguf) {
    with_gguf_type(p.gguf_type, [&](auto* type) {
      for (int64_t k = threadIdx.x; k < p.width; k += kThreads) {
        const float x = gguf_weight<std::remove_pointer_t<decltype(type)>>(p.table, p.width, id, k);
        store_as(p.out.dtype, p.out.data, row * p.out.row_stride + k, x * p.multiplier);
      }
    });
    return;
  }
  const float scale = p.scale != nullptr ? p.scale[id] : 1.0f;
  if (p.layout == TableLayout::packed_blocks) {
    for (int64_t k = threadIdx.x; k < p.width; k += kThreads) {
      const float of_block =
          *reinterpret_cast<const float*>(static_cast<const char*>(p.table) + block_scale_at(id, k / kBlockK, p.width));
      const float x = load_as(DType::e4m3, p.table, in_blocks_at(id, k, p.width)) * of_block * scale * p.multiplier;
      store_as(p.out.dtype, p.out.data, row * p.out.row_stride + k, x);
    }
    return;
  }
  for (int64_t k = threadIdx.x; k < p.width; k += kThreads) {
    const int64_t at =
        p.layout == TableLayout::rows ? id * p.width + k : packed_at(id, k, p.width, size_of(p.table_dtype));
    const float x = load_as(p.table_dtype, p.table, at) * scale * p.multiplier;
    store_as(p.out.dtype, p.out.data, row * p.out.row_stride + k, x);
  }
}

}  // namespace

void embedding(const EmbeddingParams& p, cudaStream_t stream) {
  launch(embedding_kernel, dim3(p.count), dim3(kThreads), 0, stream, p);
}

}  // namespace pybatch::cuda
