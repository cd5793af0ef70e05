#include "pybatch/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "pybatch/parallel.h"

namespace pybatch {

Ceilings measure_ceilings() {
  constexpr int64_t kBytes = 256 << 20;  // more than a last-level cache holds
  constexpr int64_t kRounds = 1 << 18;   // about a millisecond
  auto src = std::make_unique_for_overwrite<char[]>(kBytes), dst = std::make_unique_for_overwrite<char[]>(kBytes);
  std::memset(src.get(), 1, kBytes);
  std::memset(dst.get(), 1, kBytes);

  const int64_t threads = executor().num_threads();
  const int64_t share = kBytes / threads / 1024 * 1024;
  std::vector<double> done(static_cast<size_t>(threads));
  // The best of many short runs: the one that nothing else on the machine disturbed.
  auto best_rate = [&](Ceiling ceiling, int runs) {
    double best = 0;
    for (int run = 0; run < runs; ++run) {
      auto start = std::chrono::steady_clock::now();
      parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          cpu::kernels().ceiling_loop(
              {ceiling, kRounds, src.get() + i * share, dst.get() + i * share, share, &done[static_cast<size_t>(i)]});
        }
      });
      std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      double total = 0;
      for (double d : done) total += d;
      best = std::max(best, total / seconds.count());
    }
    return best;
  };
  return {best_rate(Ceiling::fp32_flops, 100), best_rate(Ceiling::int8_ops, 100), best_rate(Ceiling::read_bytes, 10),
          best_rate(Ceiling::copy_bytes, 10)};
}

}  // namespace pybatch
