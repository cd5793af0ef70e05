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

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pybatch {
namespace {

using Clock = std::chrono::steady_clock;

// For thread-local variables: room for them is there when a thread starts, not looked for when memory may be short.
#define PYBATCH_INITIAL __attribute__((tls_model("initial-exec")))

constexpr int kMostThreads = 1024;
constexpr int64_t kPieces = 8;  // of a share, about: a thread that is late has an eighth of its work undone
// For how long a thread looks whether there is work before it sleeps: a step's kernels follow each other within
// microseconds, and to be woken takes tens of them. Longer would take the processor from others, and from a thread of
// the pool itself which the system has stopped in the middle of a piece: it goes on as soon as a processor is idle.
constexpr auto kSpin = std::chrono::microseconds(50);

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
  void wait(const Ready& ready) {
    std::unique_lock lock(mutex_);
    count_.fetch_add(1);
    changed_.wait(lock, ready);
    count_.fetch_sub(1);
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

// What a job is may be read by a thread that has taken a piece of it: until that is done, the job is not, and the next
// does not begin. A late thread finds the shares empty, or takes a piece of a later job, which is as good.
class Pool {
 public:
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
    jobs_.fetch_add(1);
    idle_.wake();
    take_part(0);
    const auto done = [this] { return left_.load() == 0; };
    if (!spin_until(done)) finished_.wait(done);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  static thread_local PYBATCH_INITIAL bool within;  // whether the thread runs a piece

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
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads that the program made
    try {
      std::thread([this, me = started_ + 1] { work(me); }).detach();
    } catch (...) {
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    ++started_;
  }

  [[noreturn]] void work(int me) {
    for (uint32_t seen = 0;;) {
      const auto ready = [&] { return jobs_.load() != seen; };
      if (!spin_until(ready)) idle_.wait(ready);
      seen = jobs_.load();
      if (me < threads_.load(std::memory_order_relaxed)) take_part(me);
    }
  }

  void take_part(int me) {
    const int threads = threads_.load(std::memory_order_relaxed);
    const int64_t count = piece_.load(std::memory_order_relaxed);
    within = true;
    for (int i = 0; i < threads; ++i) {
      Share& share = shares_[(me + i) % threads];
      for (Piece piece; share.take(count, i == 0, &piece);) run_piece(piece);
    }
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

  std::atomic_flag claimed_;
  RunPiece f_ = nullptr;
  void* context_ = nullptr;
  std::exception_ptr error_;
  std::atomic_flag failed_;
  std::atomic<int64_t> piece_{1};
  std::atomic<int> threads_{1};
  int started_ = 0;
  const std::unique_ptr<Share[]> shares_ = std::make_unique<Share[]>(kMostThreads);
  alignas(64) std::atomic<uint32_t> jobs_{0};
  alignas(64) std::atomic<int64_t> left_{0};  // units that are not done
  Sleepers idle_, finished_;
};

thread_local PYBATCH_INITIAL bool Pool::within = false;

// Never destroyed, since its threads end with the process. They do not exist in a forked child, which begins anew.
Pool* pool = nullptr;

Pool* the_pool() {
  static const bool made = [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
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

void set_num_threads_source(int (*count)()) { count_threads = count; }

int num_threads() { return std::clamp(count_threads(), 1, kMostThreads); }

void run_parallel(int64_t n, int64_t grain, int64_t step, RunPiece f, void* context) {
  if (n <= 0) return;
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
