#include "pybatch/parallel.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "pybatch/binding.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/float_mode.h"
#include "cpu/processors.h"

namespace pybatch {
namespace {

using Clock = std::chrono::steady_clock;

// For thread-local variables: room for them is there when a thread starts, not looked for when memory may be short.
#define PYBATCH_INITIAL __attribute__((tls_model("initial-exec")))

constexpr int kMostThreads = 1024;
constexpr int64_t kPieces = 8;  // of a share, about: a thread that is late has an eighth of its work undone
// For how long a thread looks whether there is work before it sleeps: a step's kernels follow each other within
// microseconds, and to be woken takes tens of them. Longer would take the processor from others.
constexpr auto kSpin = std::chrono::microseconds(50);
// How often a thread that has nothing to do looks whether those at work run.
constexpr Clock::duration kLook = std::chrono::microseconds(200);
constexpr Clock::duration kForever = std::chrono::hours(1);  // to wake once more does no harm

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Ready>
bool spin_until(const Ready& ready) {
  const auto end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      pause();
    }
  } while (Clock::now() < end);
  return ready();
}

// Threads that sleep until something has happened.
class Sleepers {
 public:
  template <class Ready>
  bool wait_for(Clock::duration most, const Ready& ready) {
    std::unique_lock lock(mutex_);
    count_.fetch_add(1);
    const bool is_ready = changed_.wait_for(lock, most, ready);
    count_.fetch_sub(1);
    return is_ready;
  }
  // To be called after the change. A thread that is about to sleep is counted before it looks for the last time.
  void wake() {
    if (count_.load() == 0) return;
    {
      std::lock_guard lock(mutex_);
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<int> count_{0};
};

// Units that nobody has begun, of one thread's share. Its owner takes them from the front, others from the back.
class alignas(64) Share {
 public:
  void set(int64_t begin, int64_t end) { range_.store(pack(begin, end), std::memory_order_release); }

  bool take(int64_t count, bool own, Piece* piece) {
    uint64_t range = range_.load(std::memory_order_acquire);
    for (;;) {
      const auto begin = static_cast<int64_t>(range >> 32), end = static_cast<int64_t>(range & 0xffffffffu);
      if (begin >= end) return false;
      *piece = own ? Piece{begin, std::min(begin + count, end), end} : Piece{std::max(begin, end - count), end, end};
      const uint64_t rest = own ? pack(piece->end, end) : pack(begin, piece->begin);
      if (range_.compare_exchange_weak(range, rest, std::memory_order_acq_rel, std::memory_order_acquire)) return true;
    }
  }

 private:
  static uint64_t pack(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) << 32 | static_cast<uint64_t>(end);
  }

  std::atomic<uint64_t> range_{0};
};

// Where a thread of the pool is, for the others: any of it may be out of date.
struct alignas(64) Place {
  std::atomic<ThreadId> thread{kUnknown};
  std::atomic<int> processor{kUnknown};     // on which it last looked, or to which it was moved
  std::atomic<bool> at_work{false};         // it may hold a piece
  std::atomic<int64_t> moved_at{kUnknown};  // its time_run() when another thread last moved it
};

// What a job is may be read by a thread that has taken a piece of it: until that is done, the job is not, and the next
// does not begin. A late thread finds the shares empty, or takes a piece of a later job, which is as good.
class Pool {
 public:
  Pool() = default;
  // For a forked child: bound as `other`, without its threads.
  Pool(const Pool& other) : processors_(other.processors_) {}

  bool claim() { return !claimed_.test_and_set(std::memory_order_acquire); }
  void release() { claimed_.clear(std::memory_order_release); }

  void run(int64_t n, int threads, int64_t step, RunPiece f, void* context) {
    threads = have(threads);
    f_ = f;
    context_ = context;
    error_ = nullptr;
    failed_.clear(std::memory_order_relaxed);
    left_.store(n, std::memory_order_relaxed);
    const int64_t piece = (n / threads + kPieces - 1) / kPieces;
    piece_.store(std::max(step, piece / step * step), std::memory_order_relaxed);
    threads_.store(threads, std::memory_order_relaxed);
    for (int i = 0; i < threads; ++i) shares_[i].set(n * i / threads, n * (i + 1) / threads);
    if (self == kUnknown) self = this_thread();
    places_[0].thread.store(self, std::memory_order_relaxed);
    places_[0].processor.store(this_processor(), std::memory_order_relaxed);
    jobs_.fetch_add(1);
    idle_.wake();
    take_part(0);
    await(0, finished_, [this] { return left_.load() == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void bind(std::vector<int> processors) {
    std::lock_guard lock(binding_);
    processors_ = std::move(processors);
    for (int i = 0; i < started_; ++i) bind(i);
  }

  static thread_local PYBATCH_INITIAL bool within;  // whether the thread runs a piece
  static thread_local PYBATCH_INITIAL ThreadId self;

 private:
  // Starts threads, and returns how many there are with the calling one: fewer where the system gives no more.
  int have(int threads) {
    try {
      while (started_ < threads - 1) start();
    } catch (const std::system_error&) {
      return started_ + 1;
    }
    return threads;
  }

  void start() {
    sigset_t blocked, before;  // signals are for the threads that the program made, except a thread's own faults
    sigfillset(&blocked);
    for (int fault : {SIGBUS, SIGFPE, SIGILL, SIGSEGV}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    try {
      std::thread thread([this, me = started_ + 1] { work(me); });
      handles_[started_] = thread.native_handle();  // which stays valid, since the threads never end
      thread.detach();
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    std::lock_guard lock(binding_);
    bind(started_++);
  }

  void bind(int thread) {
    if (processors_.empty()) return;
#if defined(__linux__)
    const std::lock_guard not_moving(moving_);  // or a thread's affinity would be put back to what it was before
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processors_[static_cast<size_t>(thread + 1) % processors_.size()], &one);
    pthread_setaffinity_np(handles_[thread], sizeof one, &one);  // one that has been taken away: the thread stays free
#endif
  }

  [[noreturn]] void work(int me) {
    self = this_thread();
    places_[me].thread.store(self, std::memory_order_relaxed);
    int home = kUnknown;
    for (uint32_t seen = 0;;) {
      await(me, idle_, [&] { return jobs_.load() != seen; });
      seen = jobs_.load();
      if (me >= threads_.load(std::memory_order_relaxed)) continue;
      leave_the_caller(home);
      home = this_processor();
      places_[me].processor.store(home, std::memory_order_relaxed);
      take_part(me);
      leave_the_caller(home);
    }
  }

  // Waits until `ready`. Meanwhile the caller, and of the workers one, see to it that the threads at work do run.
  template <class Ready>
  void await(int me, Sleepers& sleepers, const Ready& ready) {
    if (spin_until(ready)) return;
    const bool looks = me == 0 || (left_.load() != 0 && !worker_looks_.test_and_set());
    for (bool done = false; !done;) {
      const bool job_under_way = looks && left_.load() != 0;
      if (job_under_way) make_room(me);
      done = sleepers.wait_for(job_under_way ? kLook : kForever, ready);
    }
    if (looks && me != 0) worker_looks_.clear();
  }

  // Lets a thread that has been stopped at work go on here, since the calling one is about to sleep. The system itself
  // would leave this processor idle for milliseconds, as the other's cache may hold what that thread needs. A worker
  // changes places with it; the caller goes on here, and the other leaves (leave_the_caller).
  void make_room(int me) {
    const int here = this_processor();
    places_[me].processor.store(here, std::memory_order_relaxed);
    for (int i = 0; i < threads_.load(std::memory_order_relaxed); ++i) {
      Place& late = places_[i];
      const int there = late.processor.load(std::memory_order_relaxed);
      if (i == me || there == here || !late.at_work.load(std::memory_order_relaxed)) continue;
      const ThreadId thread = late.thread.load(std::memory_order_relaxed);
      const int64_t time = time_run(thread);
      if (time == kUnknown || time_run(thread) != time) continue;  // it runs
      if (late.moved_at.exchange(time) == time) continue;          // moved already, and not run since
      if (!move(thread, here)) continue;
      late.processor.store(here, std::memory_order_relaxed);
      if (me != 0 && move(self, there)) places_[me].processor.store(there, std::memory_order_relaxed);
      return;
    }
  }

  // Workers leave the caller its processor. The system wakes them there too when others are as busy.
  void leave_the_caller(int home) {
    const int here = this_processor();
    if (here == kUnknown || here != places_[0].processor.load(std::memory_order_relaxed)) return;
    if (home == kUnknown || home == here) home = find_processor([&](int i) { return nobody_on(i); });
    move(self, home);
  }

  // One move at a time: of two of the same thread, the later would take what the first narrows its affinity to for what
  // it was. Who comes meanwhile goes without.
  bool move(ThreadId thread, int processor) {
    const std::unique_lock lock(moving_, std::try_to_lock);
    return lock && move_thread(thread, processor);
  }

  bool nobody_on(int processor) const {
    for (int i = 0; i < threads_.load(std::memory_order_relaxed); ++i) {
      if (places_[i].processor.load(std::memory_order_relaxed) == processor) return false;
    }
    return true;
  }

  void take_part(int me) {
    const int threads = threads_.load(std::memory_order_relaxed);
    const int64_t count = piece_.load(std::memory_order_relaxed);
    within = true;
    places_[me].at_work.store(true, std::memory_order_relaxed);
    for (int i = 0; i < threads; ++i) {
      Share& share = shares_[(me + i) % threads];
      for (Piece piece; share.take(count, i == 0, &piece);) run_piece(piece);
    }
    places_[me].at_work.store(false, std::memory_order_relaxed);
    within = false;
  }

  void run_piece(const Piece& piece) {
    try {
      f_(piece, context_);
    } catch (...) {
      if (!failed_.test_and_set()) error_ = std::current_exception();
    }
    if (left_.fetch_sub(piece.end - piece.begin) == piece.end - piece.begin) finished_.wake();
  }

  std::atomic_flag claimed_, worker_looks_;
  RunPiece f_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
  std::atomic_flag failed_;
  std::atomic<int64_t> piece_{1};
  std::atomic<int> threads_{1};
  int started_ = 0;
  const std::unique_ptr<pthread_t[]> handles_ = std::make_unique<pthread_t[]>(kMostThreads);
  std::mutex binding_;
  std::vector<int> processors_;
  const std::unique_ptr<Share[]> shares_ = std::make_unique<Share[]>(kMostThreads);
  const std::unique_ptr<Place[]> places_ = std::make_unique<Place[]>(kMostThreads);
  alignas(64) std::atomic<uint32_t> jobs_{0};
  alignas(64) std::atomic<int64_t> left_{0};  // units that are not done
  Sleepers idle_, finished_;
  std::mutex moving_;
};

thread_local PYBATCH_INITIAL bool Pool::within = false;
thread_local PYBATCH_INITIAL ThreadId Pool::self = kUnknown;

// Never destroyed, since its threads end with the process. They do not exist in a forked child, which begins anew.
Pool* pool = nullptr;

Pool* the_pool() {
  static const bool made = [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] {
      pool = new Pool(*pool);
      Pool::self = kUnknown;
    });
    return true;
  }();
  (void)made;
  return pool;
}

int (*count_threads)() = [] { return 1; };

struct Free {
  void operator()(void* p) const { std::free(p); }
};

struct Buffer {
  std::unique_ptr<void, Free> data;
  int64_t bytes = 0;
};

constexpr int kSlots = 8;

}  // namespace

void bind_threads(std::vector<int> processors) { the_pool()->bind(std::move(processors)); }

void set_num_threads_source(int (*count)()) { count_threads = count; }

int num_threads() { return std::clamp(count_threads(), 1, kMostThreads); }

void run_parallel(int64_t n, int64_t grain, int64_t step, RunPiece f, void* context) {
  if (n <= 0) return;
  const DefaultFloats defaults;  // which threads that are started meanwhile have, too
  const int64_t threads = std::min<int64_t>(num_threads(), (n + grain - 1) / grain);
  if (threads > 1 && n < int64_t{1} << 32 && !Pool::within) {
    if (Pool& pool = *the_pool(); pool.claim()) {
      struct Release {
        Pool& pool;
        ~Release() { pool.release(); }
      } release{pool};
      return pool.run(n, static_cast<int>(threads), step, f, context);
    }
  }
  f({0, n, n}, context);
}

void* thread_scratch(int slot, int64_t bytes) {
  thread_local PYBATCH_INITIAL Buffer buffers[kSlots];
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
