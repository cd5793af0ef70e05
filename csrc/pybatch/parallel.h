// How CPU kernels use threads: the binding installs the framework's pool (one pool in the process, no nesting); until
// then work runs on the calling thread.
#pragma once

#include <cstdint>

namespace pybatch {

struct Executor {
  using Range = void (*)(int64_t begin, int64_t end, void* context);
  void (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Range, void* context);
  int (*num_threads)();
};

Executor& executor();

// Calls f with ranges of [0, n) through the executor, and rethrows here the first exception that a range threw.
void run_parallel(int64_t n, int64_t grain, Executor::Range f, void* context);

// Splits [0, n) into at most num_threads() contiguous ranges of at least `grain` and calls f(begin, end) on each. How
// the range is split must never change a result.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  run_parallel(
      n, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// A buffer of the calling thread, at least `bytes` long and 64-byte aligned, kept for the next call. `slot`
// distinguishes buffers that one kernel needs at the same time. Throws std::runtime_error if out of memory.
void* thread_scratch(int slot, int64_t bytes);

}  // namespace pybatch
