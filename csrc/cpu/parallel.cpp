#include "pybatch/parallel.h"

#include <cstdlib>
#include <memory>

namespace pybatch {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Buffer {
  std::unique_ptr<void, Free> data;
  int64_t bytes = 0;
};

constexpr int kSlots = 8;

}  // namespace

Executor& executor() {
  static Executor serial{[](int64_t begin, int64_t end, int64_t, Executor::Range f, void* context) {
                           if (begin < end) f(begin, end, context);
                         },
                         [] { return 1; }};
  return serial;
}

void* thread_scratch(int slot, int64_t bytes) {
  thread_local Buffer buffers[kSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    buffer.bytes = (bytes + 4095) / 4096 * 4096;
    buffer.data.reset();  // before the new one, so that the two are never held at once
    buffer.data.reset(std::aligned_alloc(64, static_cast<size_t>(buffer.bytes)));
    if (!buffer.data) std::abort();
  }
  return buffer.data.get();
}

}  // namespace pybatch
