#include "cpu/vec.h"
#include "pybatch/kv_pruning.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kMaxBlockSize = 64;

// Fills the first `count` places of one block for one head, in ascending order: the block may be one of the source. K
// and V stand for the bytes of an element, or of the word of an int4 cache; V has those of `run` tokens side by side.
template <class K, class V = K, int64_t run = 1>
void gather(const GatherKvParams& p, int64_t head, int64_t to_block, const int32_t* indices, int64_t count) {
  const KvCache& c = p.cache;
  const int64_t bytes = size_of(c.dtype), packed = c.dtype == DType::i4;
  const int64_t k_width = c.head_dim / (packed ? 8 : 1), v_width = c.head_dim / (packed ? 4 : 1);  // of a token
  const int64_t k_stride = c.k_block_stride * bytes / static_cast<int64_t>(sizeof(K));
  const int64_t v_stride = c.v_block_stride * bytes / static_cast<int64_t>(sizeof(V));
  K* k = static_cast<K*>(c.k) + head * k_width * c.block_size;
  V* v = static_cast<V*>(c.v) + head * v_width * c.block_size;
  auto value = [&](int64_t block, int64_t offset) {
    return v + block * v_stride + offset / run * run * v_width + offset % run;
  };
  const K* keys[kMaxBlockSize];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t block = p.source[indices[i] / c.block_size], offset = indices[i] % c.block_size;
    keys[i] = k + block * k_stride + offset;
    const V* from = value(block, offset);
    V* to = value(to_block, i);
    for (int64_t d = 0; d < v_width; ++d) to[d * run] = from[d * run];
    if (!c.has_scales()) continue;
    for (int64_t g = 0; g < c.groups(); ++g) {
      const int64_t row = (head * c.groups() + g) * c.block_size;
      f16 *k_scale = static_cast<f16*>(c.k_scale) + row, *v_scale = static_cast<f16*>(c.v_scale) + row;
      k_scale[to_block * c.k_scale_block_stride + i] = k_scale[block * c.k_scale_block_stride + offset];
      v_scale[to_block * c.v_scale_block_stride + i] = v_scale[block * c.v_scale_block_stride + offset];
    }
  }
  K* to_k = k + to_block * k_stride;
  for (int64_t d = 0; d < k_width; ++d) {
    for (int64_t i = 0; i < count; ++i) to_k[d * c.block_size + i] = keys[i][d * c.block_size];
  }
}

}  // namespace

void gather_kv(const GatherKvParams& p) {
  const KvCache& c = p.cache;
  const int64_t blocks = (p.kept + c.block_size - 1) / c.block_size;
  parallel_for(c.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * blocks; i < end * blocks; ++i) {
      const int64_t head = i / blocks, first = i % blocks * c.block_size;
      const int64_t count = p.kept - first < c.block_size ? p.kept - first : c.block_size;
      const int64_t block = p.destination[i % blocks];
      const int32_t* indices = p.indices + head * p.kept + first;
      if (c.dtype == DType::i4) {
        gather<uint32_t, uint16_t, 4>(p, head, block, indices, count);
        continue;
      }
      switch (size_of(c.dtype)) {
        case 1: gather<uint8_t>(p, head, block, indices, count); break;
        case 2: gather<uint16_t>(p, head, block, indices, count); break;
        default: gather<uint32_t>(p, head, block, indices, count);
      }
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
