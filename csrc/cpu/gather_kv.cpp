#include "cpu/kernels.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kMaxBlockSize = 64;

// Fills the first `count` places of one block for one head; T stands for an element's bytes.
template <class T>
void gather(const GatherKvParams& p, int64_t head, int64_t to_block, const int32_t* indices, int64_t count) {
  const KvCache& c = p.cache;
  const int64_t plane = head * c.head_dim * c.block_size, row = head * c.block_size;
  T *k = static_cast<T*>(c.k) + plane, *v = static_cast<T*>(c.v) + plane;
  T *to_k = k + to_block * c.k_block_stride, *to_v = v + to_block * c.v_block_stride;
  const T* keys[kMaxBlockSize];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = p.source[indices[i] / c.block_size], offset = indices[i] % c.block_size;
    keys[i] = k + block * c.k_block_stride + offset;
    std::memcpy(to_v + i * c.head_dim, v + block * c.v_block_stride + offset * c.head_dim,
                static_cast<size_t>(c.head_dim) * sizeof(T));
    if (c.has_scales()) {
      f16 *k_scale = static_cast<f16*>(c.k_scale) + row, *v_scale = static_cast<f16*>(c.v_scale) + row;
      k_scale[to_block * c.k_scale_block_stride + i] = k_scale[block * c.k_scale_block_stride + offset];
      v_scale[to_block * c.v_scale_block_stride + i] = v_scale[block * c.v_scale_block_stride + offset];
    }
  }
  for (int64_t d = 0; d < c.head_dim; ++d) {
    for (int64_t i = 0; i < count; ++i) to_k[d * c.block_size + i] = keys[i][d * c.block_size];
  }
}

}  // namespace

void gather_kv(const GatherKvParams& p) {
  const KvCache& c = p.cache;
  const int64_t blocks = (p.kept + c.block_size - 1) / c.block_size;
  parallel_for(blocks * c.kv_heads, 2, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i % c.kv_heads, first = i / c.kv_heads * c.block_size;
      const int64_t count = p.kept - first < c.block_size ? p.kept - first : c.block_size;
      const int64_t block = p.destination[i / c.kv_heads];
      const int32_t* indices = p.indices + head * p.kept + first;
      switch (size_of(c.dtype)) {
        case 1: gather<uint8_t>(p, head, block, indices, count); break;
        case 2: gather<uint16_t>(p, head, block, indices, count); break;
        default: gather<uint32_t>(p, head, block, indices, count);
      }
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
