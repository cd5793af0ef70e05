// Runs the blocks of a launch: one fiber a thread, first come first served, until each has returned or none can run.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "registry.h"
#include "shadow.h"
#include "simt/numbers.h"
#include "simt/runtime.h"

namespace simt {

constexpr size_t kMaxSharedBytes = 227 << 10;  // of sm_90, the largest
constexpr unsigned kMaxThreads = 1024, kWarp = 32, kWarpgroup = 128;

class Worker;

constexpr int kRead = -1;  // beside the kinds of writes, Stamp::Kind

struct AsyncCopy {
  const void* source;
  size_t offset;
  unsigned bytes, source_bytes;
};

// A wgmma that has been issued and not waited for, and an accumulator that such ones add to.
struct Wgmma {
  int32_t* d;      // or floats
  Format format;  // of A and B; of s8 no bits
  int n;
  const uint32_t* a;
  uint32_t a_at_issue[4];
  uint64_t descriptor;
  bool n_major;  // b: columns side by side
  bool accumulate;
};
struct Accumulator {
  int32_t* d;
  std::vector<int32_t> values;
};

struct Thread {
  Fiber fiber;
  Worker* worker;
  uint3 index;
  unsigned linear;
  bool exited, has_waited;      // for the kernels before
  const char* waits_for;  // null: it does not wait
  Location waits_at;
  std::vector<AsyncCopy> copies;  // issued and not landed, oldest first
  std::vector<size_t> groups;     // how many of them each committed group holds, oldest first
  std::vector<Wgmma> wgmmas;      // likewise
  std::vector<size_t> wgmma_groups;
  std::vector<Accumulator> accumulators;
  bool wgmma_fenced;
  std::vector<uint64_t*> not_fenced;  // first and last marks of what it has written since its last fence
  uint32_t fenced_behind;             // how many atomics of the block came before that

  unsigned warp() const { return linear / kWarp; }
  unsigned lane() const { return linear % kWarp; }
};

// A warp-wide instruction that some lanes have reached.
struct Pending {
  const char* name;
  Location at;
  unsigned mask, arrived;
  void* operands[kWarp];
};

// A warpgroup-wide one.
struct WarpgroupPending {
  const char* name = nullptr;  // null: no thread has
  Location at;
  uint64_t operand;  // that all threads have to agree on
  std::vector<Thread*> waiting;
};

struct Barrier {
  unsigned expected = 0;
  Location at;
  std::vector<Thread*> waiting;
};

// A barrier object in shared memory.
struct Mbarrier {
  uint32_t count, pending;  // arrivals that each phase waits for, and that the current one still does
  int64_t bytes;            // of copies, that the current phase waits for
  uint32_t parity;          // of the current phase
  Moment arriving, completed;
  std::vector<Thread*> waiting;
};

struct BulkCopy {
  size_t barrier, offset;     // in shared memory
  uint32_t bytes;             // that come to the barrier
  std::function<void()> land;
};

class Worker {
 public:
  Worker();
  ~Worker();
  void run_block(const Launch&, uint3 block, uint64_t seed);  // seed 0: in order

  // Called on the fiber of a thread. These return once the thread may go on.
  void barrier(Thread&, int id, unsigned threads, Location);
  void collective(Thread&, unsigned mask, const char* name, void* operand, Apply, Location);
  // All threads of the warpgroup come with the same operand; the one that comes last calls `last`.
  void warpgroup(Thread&, const char* name, uint64_t operand, const std::function<void()>& last, Location);
  void exit(Thread&);

  void mbarrier_init(Thread&, size_t offset, uint32_t count, Location);
  void mbarrier_arrive(Thread&, size_t offset, uint32_t expected_bytes, Location);
  void mbarrier_wait(Thread&, size_t offset, uint32_t parity, Location);
  void start_copy(Thread&, BulkCopy, Location);
  void set_registers(Thread&, const char* name, unsigned count, Location);

  void global_access(uintptr_t p, size_t bytes, int kind, const void* pc, const char* what);
  void shared_access(Thread&, uintptr_t p, size_t bytes, int kind, const void* pc, const char* what,
                     bool by_proxy = false);
  bool is_shared(uintptr_t p) const { return p - window_ < kWindowBytes; }

  // Where an address in global or shared memory is; empty if it is near no buffer.
  std::string locate(uintptr_t p) const;
  void record(const std::string& message, const void* pc);
  // Records the fault and gives the block up.
  [[noreturn]] void fail(const std::string& message, const void* pc = nullptr);
  [[noreturn]] void fail(const std::string& message, Location);

  // For order_across_blocks: the thread's fence of global memory.
  void fence(Thread&);

  const Launch* launch = nullptr;
  uint32_t launch_number = 0;
  uint3 block{};
  char* shared;
  Shadow shadow{kMaxSharedBytes};

 private:
  static constexpr size_t kWindowBytes = 4 << 20;  // around shared memory: an access here was meant for it
  static void run_thread(void*);
  Mbarrier& mbarrier(Thread&, size_t offset, const char* what, Location);
  void end_phase_if_complete(Mbarrier&);
  void land_a_copy();
  void block_thread(Thread&, const char* what, Location);
  void wake(Thread&);
  void order_across_blocks(Thread&, const Range&, uintptr_t p, size_t bytes, int kind, const void* pc, const char* what);
  void release_fenced();  // at an atomic on global memory
  void thread_landed();  // each time that run_next() has chosen it
  [[noreturn]] void run_next();
  std::string stuck() const;

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Thread*> ready_;  // a ring as large as the block
  size_t head_ = 0, tail_ = 0;
  unsigned count_ = 0, live_ = 0;
  std::vector<Pending> pending_[kMaxThreads / kWarp];
  unsigned exited_lanes_[kMaxThreads / kWarp];
  Barrier barriers_[16];
  WarpgroupPending warpgroups_[kMaxThreads / kWarpgroup];
  unsigned registers_[kMaxThreads / kWarpgroup];  // of a thread; 0: as at the launch
  std::map<size_t, Mbarrier> mbarriers_;          // by where they lie
  std::vector<BulkCopy> copies_;                  // that have not landed, oldest first
  bool newest_first_ = false;
  Context main_;
  bool failed_ = false;
  uintptr_t window_;
  uint32_t atomics_ = 0;            // of the block, on global memory
  std::vector<uint64_t*> fenced_;  // as Thread::not_fenced, of all threads, since the last of them
  const Range* recent_[8];  // what global accesses of the block have hit of late
};

extern thread_local Thread* current __attribute__((tls_model("initial-exec")));  // null outside kernels

Thread& needs_hopper(const char* name, Location);  // the calling thread; a fault on other chips
std::string where(const void* pc);
std::string where(Location);
void record_fault(const std::string&);
bool has_fault();

}  // namespace simt
