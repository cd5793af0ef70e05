#include "pybatch/parallel.h"

#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

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

void run_parallel(int64_t n, int64_t grain, Executor::Range f, void* context) {
  if (n <= 0) return;
  struct Run {
    Executor::Range f;
    void* context;
    std::atomic_flag failed;
    std::exception_ptr error;
  } run{f, context, {}, {}};
  executor().parallel_for(
      0, n, grain,
      [](int64_t begin, int64_t end, void* context) {
        Run& run = *static_cast<Run*>(context);
        try {
          run.f(begin, end, run.context);
        } catch (...) {
          if (!run.failed.test_and_set()) run.error = std::current_exception();
        }
      },
      &run);
  if (run.error) std::rethrow_exception(run.error);
}

void* thread_scratch(int slot, int64_t bytes) {
  thread_local Buffer buffers[kSlots];
  Buffer& buffer = buffers[slot];
  if (buffer.bytes < bytes) {
    buffer = {};  // freed first, so that both are never held at once
    bytes = (bytes + 4095) / 4096 * 4096;
    buffer.data.reset(std::aligned_alloc(64, static_cast<size_t>(bytes)));
    if (!buffer.data) {
      throw std::runtime_error("out of memory: a kernel was refused " + std::to_string(bytes) + " bytes to work in");
    }
    buffer.bytes = bytes;
  }
  return buffer.data.get();
}

}  // namespace pybatch
