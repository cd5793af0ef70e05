#include "pybatch/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
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
  // The best of the short runs that fit in half a second: the one that nothing else on the machine disturbed.
  auto best_rate = [&](Ceiling ceiling) {
    using Clock = std::chrono::steady_clock;
    double best = 0;
    for (Clock::time_point end = Clock::now() + std::chrono::milliseconds(500); Clock::now() < end;) {
      Clock::time_point start = Clock::now();
      parallel_for(threads, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          cpu::kernels().ceiling_loop(
              {ceiling, kRounds, src.get() + i * share, dst.get() + i * share, share, &done[static_cast<size_t>(i)]});
        }
      });
      std::chrono::duration<double> seconds = Clock::now() - start;
      best = std::max(best, std::accumulate(done.begin(), done.end(), 0.0) / seconds.count());
    }
    return best;
  };
  return {best_rate(Ceiling::fp32_flops), best_rate(Ceiling::int8_ops), best_rate(Ceiling::read_bytes),
          best_rate(Ceiling::copy_bytes)};
}

}  // namespace pybatch
