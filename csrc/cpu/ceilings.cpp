#include "pybatch/ceilings.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "cpu/kernels.h"
#include "pybatch/parallel.h"

namespace pybatch {

double measure_ceiling(Ceiling ceiling, double seconds) {
  constexpr int64_t kBytes = 256 << 20;  // more than a last-level cache holds
  constexpr int64_t kRounds = 1 << 18;   // about a millisecond
  static const std::vector<char> src(kBytes, 1);
  static std::vector<char> dst(kBytes, 1);

  const int64_t threads = num_threads();
  const int64_t share = kBytes / threads / 1024 * 1024;
  std::vector<double> done(static_cast<size_t>(threads)), rates;
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    const Clock::time_point start = Clock::now();
    parallel_for(threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        cpu::kernels().ceiling_loop(
            {ceiling, kRounds, src.data() + i * share, dst.data() + i * share, share, &done[static_cast<size_t>(i)]});
      }
    });
    const std::chrono::duration<double> taken = Clock::now() - start;
    rates.push_back(std::accumulate(done.begin(), done.end(), 0.0) / taken.count());
  } while (Clock::now() < end);
  std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

}  // namespace pybatch
