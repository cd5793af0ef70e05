#include "pybatch/ceilings.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"
#include "pybatch/parallel.h"

namespace pybatch {

namespace {

constexpr int64_t kBytes = 512 << 20;  // more than nearly all last-level caches hold

// In huge pages where there are any, as weights are: with small ones a thread reads a third less.
char* memory() {
  static char* const bytes = [] {
    void* p = std::aligned_alloc(2 << 20, kBytes);
    if (p == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(p, kBytes, MADV_HUGEPAGE);
#endif
    return static_cast<char*>(std::memset(p, 1, kBytes));
  }();
  return bytes;
}

}  // namespace

double measure_ceiling(Ceiling ceiling, double seconds) {
  constexpr int64_t kRounds = 1 << 18;  // about a millisecond
  const bool copies = ceiling == Ceiling::copy_bytes;
  char* const src = memory();
  const int64_t threads = num_threads();
  const int64_t share = (copies ? kBytes / 2 : kBytes) / threads / 1024 * 1024;
  std::vector<double> done(static_cast<size_t>(threads)), rates;
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const Clock::time_point start = Clock::now();
    parallel_for(threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        char* const dst = copies ? src + kBytes / 2 + i * share : nullptr;
        cpu::kernels().ceiling_loop({ceiling, kRounds, src + i * share, dst, share, &done[static_cast<size_t>(i)]});
      }
    });
    const std::chrono::duration<double> taken = Clock::now() - start;
    rates.push_back(std::accumulate(done.begin(), done.end(), 0.0) / taken.count());
  } while (Clock::now() < end);
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

}  // namespace pybatch
