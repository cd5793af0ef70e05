// What one block may read of what another has written in the same launch: what the writing thread has fenced ahead of an
// atomic of its block, where the reading thread has fenced behind an atomic of its own. So a last block adds up what the
// others have left. A thread whose writes another's fence covers, through a barrier, is asked for its own all the same.
#include "engine.h"

namespace simt {
namespace {

// Who wrote four bytes last, and whether it has released them since.
uint64_t mark_of(const Worker& w) {
  const dim3 grid = w.launch->grid;
  return uint64_t{w.launch_number} << 40 | (w.block.x + grid.x * (w.block.y + uint64_t{grid.y} * w.block.z)) << 1;
}
constexpr uint64_t kReleased = 1;

}  // namespace

void Worker::order_across_blocks(Thread& t, const Range& range, uintptr_t p, size_t bytes, int kind, const void* pc,
                                 const char* what) {
  if (kind == Stamp::kAtomic) release_fenced();
  const uint64_t mine = mark_of(*this);
  const bool whole = p % 4 == 0 && bytes % 4 == 0;  // bytes that two blocks have parts of are not looked at
  uint64_t* const first = range.marks + (p - range.begin) / 4;
  uint64_t* const last = range.marks + (p + bytes - 1 - range.begin) / 4;
  for (uint64_t* mark = first; mark <= last; ++mark) {
    if (kind != kRead) {
      __atomic_store_n(mark, whole && kind == Stamp::kPlain ? mine : 0, __ATOMIC_RELAXED);
      continue;
    }
    const uint64_t writer = __atomic_load_n(mark, __ATOMIC_RELAXED);
    if (writer >> 40 != launch_number || (writer & ~kReleased) == mine) continue;
    if (!(writer & kReleased)) fail(std::string(what) + " of what another block has written and not released", pc);
    if (atomics_ == 0 || t.fenced_behind != atomics_) {
      fail(std::string(what) + " of what another block has written, without an atomic and then a fence", pc);
    }
  }
  if (kind != kRead) t.not_fenced.insert(t.not_fenced.end(), {first, last});
}

void Worker::fence(Thread& t) {
  t.fenced_behind = atomics_;
  fenced_.insert(fenced_.end(), t.not_fenced.begin(), t.not_fenced.end());
  t.not_fenced.clear();
}

void Worker::release_fenced() {
  ++atomics_;
  const uint64_t mine = mark_of(*this);
  for (size_t i = 0; i < fenced_.size(); i += 2) {
    for (uint64_t* mark = fenced_[i]; mark <= fenced_[i + 1]; ++mark) {
      uint64_t expected = mine;
      __atomic_compare_exchange_n(mark, &expected, mine | kReleased, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
  }
  fenced_.clear();
}

}  // namespace simt
