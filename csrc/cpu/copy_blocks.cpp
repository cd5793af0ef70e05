#include <cstring>

#include "cpu/vec.h"
#include "pybatch/kv_cache.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

void copy_blocks(const CopyBlocksParams& p) {
  constexpr int64_t kSegment = 64 * 1024;  // a block holds all layers, so that even one pair is split among threads
  const int64_t segments = (p.block_bytes + kSegment - 1) / kSegment;
  parallel_for(p.count * segments, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t* pair = p.pairs + 2 * (i / segments);
      const int64_t offset = i % segments * kSegment;
      const int64_t bytes = p.block_bytes - offset < kSegment ? p.block_bytes - offset : kSegment;
      std::memcpy(static_cast<char*>(p.dst) + pair[1] * p.block_bytes + offset,
                  static_cast<const char*>(p.src) + pair[0] * p.block_bytes + offset, static_cast<size_t>(bytes));
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
