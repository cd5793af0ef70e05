// Which processor a thread runs on, whether it does, and moving it. Elsewhere than on Linux nothing is known or moved.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace pybatch {

constexpr int kUnknown = -1;

#if defined(__linux__)

using ThreadId = pid_t;  // the kernel's number

inline ThreadId this_thread() { return static_cast<ThreadId>(syscall(SYS_gettid)); }

inline int this_processor() { return sched_getcpu(); }

// Processor time in ns that a thread of this process has had until now: it stands still exactly while the thread does.
inline int64_t time_run(ThreadId thread) {
  // As pthread_getcpuclockid makes a clock of a thread: see CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED in Linux.
  const auto clock = static_cast<clockid_t>(~static_cast<uint32_t>(thread) << 3 | 6);
  timespec t;
  return clock_gettime(clock, &t) == 0 ? t.tv_sec * int64_t{1'000'000'000} + t.tv_nsec : kUnknown;
}

// Moves a thread of this process to a processor where its affinity lets it run. Its affinity is the same afterwards;
// where it was all that the process may use, it stays that when the cpuset of its container changes.
inline bool move_thread(ThreadId thread, int processor) {
  cpu_set_t before, only, now, all;
  if (processor < 0 || processor >= CPU_SETSIZE || sched_getaffinity(thread, sizeof before, &before) != 0) return false;
  if (!CPU_ISSET(processor, &before)) return false;
  CPU_ZERO(&only);
  CPU_SET(processor, &only);
  if (sched_setaffinity(thread, sizeof only, &only) != 0) return false;
  // Somebody may have set it since: a thread that moves itself is back only when the other processor has time for it.
  if (sched_getaffinity(thread, sizeof now, &now) != 0 || !CPU_EQUAL(&now, &only)) return true;
  std::memset(&all, 0xff, sizeof all);
  sched_setaffinity(thread, sizeof all, &all);
  if (sched_getaffinity(thread, sizeof now, &now) != 0 || !CPU_EQUAL(&now, &before)) {
    sched_setaffinity(thread, sizeof before, &before);
  }
  return true;
}

// The first processor that the calling thread may run on and `suits`.
template <class Suits>
int find_processor(const Suits& suits) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return kUnknown;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &allowed) && suits(i)) return i;
  }
  return kUnknown;
}

#else

using ThreadId = int;
inline ThreadId this_thread() { return kUnknown; }
inline int this_processor() { return kUnknown; }
inline int64_t time_run(ThreadId) { return kUnknown; }
inline bool move_thread(ThreadId, int) { return false; }
template <class Suits>
int find_processor(const Suits&) {
  return kUnknown;
}

#endif

}  // namespace pybatch
