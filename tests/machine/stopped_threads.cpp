// Whether a thread of the pool that a busy neighbour has stopped in the middle of a piece goes on where another waits.
// The neighbour is a loop on the same processor; what the pool asks of the system is seen on its way there.
//     stopped_threads worker|caller      who is stopped
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

#include "pybatch/parallel.h"

namespace {

pid_t this_thread() { return static_cast<pid_t>(syscall(SYS_gettid)); }

const pid_t caller = this_thread();
std::atomic<pid_t> worker{0}, stopped{0};
std::atomic<int> lent{-1};      // the processor to which the other thread has moved the stopped one: its own
std::atomic<int> went_on{-1};   // that on which the stopped one was when it ran again
std::atomic<int> widened{0};    // to how many processors an affinity was set last, when it was to several
std::atomic<int> left_for{-1};  // that to which the worker moved itself afterwards

enum Seen { kNothing, kMoved, kWentOn, kLeft };
constexpr const char* kSeen[] = {"nobody moved the stopped thread", "it did not go on where it was moved to",
                                 "it went on, but the worker stayed with the caller",
                                 "it went on, and the worker left"};

template <class Ready>
bool happens(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (!ready()) {
    if (std::chrono::steady_clock::now() > end) return false;
  }
  return true;
}

// Keeps a processor busy for as long as it lives.
class Neighbour {
 public:
  explicit Neighbour(int processor)
      : thread_([this, processor] {
          cpu_set_t set;
          CPU_ZERO(&set);
          CPU_SET(processor, &set);
          sched_setaffinity(0, sizeof set, &set);
          while (!ends_.load(std::memory_order_relaxed)) {
          }
        }) {}
  ~Neighbour() {
    ends_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> ends_{false};
  std::thread thread_;
};

bool may_run_on(pid_t thread, const cpu_set_t& expected) {
  cpu_set_t set;
  return sched_getaffinity(thread, sizeof set, &set) == 0 && CPU_EQUAL(&set, &expected);
}

// One job, in which a thread works until the other has moved it. The last step that went well.
Seen goes_on(bool caller_is_stopped) {
  lent = went_on = left_for = -1;
  std::unique_ptr<Neighbour> neighbour;
  std::atomic<int> begun{0};
  pybatch::parallel_for(2, 1, [&](int64_t, int64_t) {
    const pid_t me = this_thread();
    if (me != caller) worker = me;
    ++begun;
    if (!happens([&] { return begun == 2; }) || (me == caller) != caller_is_stopped) return;  // a unit for each thread
    stopped = me;
    neighbour = std::make_unique<Neighbour>(sched_getcpu());
    happens([] { return lent >= 0; });
    went_on = sched_getcpu();
    stopped = 0;
  });
  if (lent < 0) return kNothing;
  if (went_on != lent) return kMoved;
  return happens([] { return left_for >= 0; }) && left_for != lent ? kLeft : kWentOn;
}

}  // namespace

extern "C" int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t* set) noexcept {
  const pid_t me = this_thread();
  const int here = sched_getcpu();
  if (syscall(SYS_sched_setaffinity, thread, size, set) != 0) return -1;
  if (CPU_COUNT(set) > 1) widened = CPU_COUNT(set);
  if (CPU_COUNT(set) == 1 && thread == stopped && thread != me && CPU_ISSET(here, set)) lent = here;
  if (CPU_COUNT(set) == 1 && thread == worker && thread == me && lent >= 0) left_for = sched_getcpu();
  return 0;
}

// The system moves threads too where more is going on: of several jobs, one must go all the way.
int main(int, char** arguments) {
  cpu_set_t allowed, all;
  sched_getaffinity(0, sizeof allowed, &allowed);
  std::memset(&all, 0xff, sizeof all);
  syscall(SYS_sched_setaffinity, 0, sizeof all, &all);
  const bool narrowed = !may_run_on(0, allowed);  // to fewer processors than there are for the process
  if (narrowed) syscall(SYS_sched_setaffinity, 0, sizeof allowed, &allowed);
  pybatch::set_num_threads_source([] { return 2; });
  Seen most = kNothing;
  for (int i = 0; i < 10; ++i) {
    most = std::max(most, goes_on(std::strcmp(arguments[1], "caller") == 0));
    if (!happens([&] { return may_run_on(caller, allowed) && may_run_on(worker, allowed); })) {
      return std::puts("affinity has changed"), 1;
    }
    if (lent >= 0 && !happens([&] { return widened == (narrowed ? CPU_COUNT(&allowed) : CPU_SETSIZE); })) {
      return std::puts("affinity has changed for when there are more processors"), 1;
    }
  }
  return std::puts(kSeen[most]), most != kLeft;
}
