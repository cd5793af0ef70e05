// The functions of simt/runtime.h, and the C interface that the tests drive the runtime with.
#include "simt/runtime.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>

#include "engine.h"

namespace simt {
namespace {

std::mutex fault_lock;
std::string fault;
std::atomic<bool> faulty;
std::atomic<uint64_t> schedule_seed;
std::atomic<unsigned> os_threads = 2;
std::atomic<int> device_capability = 86;

Thread& self() { return *current; }

}  // namespace

void record_fault(const std::string& message) {
  std::lock_guard lock(fault_lock);
  if (faulty.exchange(true)) return;
  fault = message;
}

bool has_fault() { return faulty; }

int compute_capability() { return device_capability; }
size_t max_shared_bytes() { return device_capability == 90 ? kMaxSharedBytes : 99 << 10; }

uint3 thread_index() { return self().index; }
uint3 block_index() { return self().worker->block; }
dim3 block_dim() { return self().worker->launch->block; }
dim3 grid_dim() { return self().worker->launch->grid; }
unsigned lane() { return self().lane(); }

void fence() { self().worker->fence(self()); }

void wait_for_kernels_before() { self().has_waited = true; }

void sync_block(Location at) {
  dim3 n = block_dim();
  self().worker->barrier(self(), 0, n.x * n.y * n.z, at);
}

void named_barrier(int id, int threads, Location at) {
  self().worker->barrier(self(), id, static_cast<unsigned>(threads), at);
}

void sync_warp(unsigned mask, Location at) {
  Apply join = [](void* const operands[kWarp], unsigned lanes) {
    uint32_t threads[kWarp], count = 0;
    Worker* worker = nullptr;
    for (unsigned i = 0; i < kWarp; ++i) {
      if (lanes >> i & 1) {
        auto* t = static_cast<Thread*>(operands[i]);
        threads[count++] = t->linear;
        worker = t->worker;
      }
    }
    worker->shadow.clocks.join(threads, count);
  };
  self().worker->collective(self(), mask, "__syncwarp", &self(), join, at);
}

void collective(unsigned mask, const char* name, void* operand, Apply apply, Location at) {
  self().worker->collective(self(), mask, name, operand, apply, at);
}

void* shared_memory() { return self().worker->shared; }

uint32_t shared_address(const void* p) {
  constexpr uint32_t kReserved = 1024;  // bytes that a block's own lie behind, on Hopper
  return static_cast<uint32_t>(static_cast<const char*>(p) - self().worker->shared) + kReserved;
}

namespace {

void access(const void* pointer, size_t bytes, int kind, const void* pc, const char* what) {
  Thread* t = current;
  if (!t || t->fiber.holds(pointer)) return;
  auto p = reinterpret_cast<uintptr_t>(pointer);
  if (t->worker->is_shared(p)) {
    t->worker->shared_access(*t, p, bytes, kind, pc, what);
  } else {
    t->worker->global_access(p, bytes, kind, pc, what);
  }
}

[[gnu::noinline, gnu::cold]] void misaligned(const void* p, size_t alignment, const void* pc, const char* what) {
  char address[32];
  std::snprintf(address, sizeof address, "%p", p);
  self().worker->fail(std::string("misaligned ") + what + ": address " + address + " is no multiple of " +
                          std::to_string(alignment), pc);
}

inline void aligned_to(const void* p, size_t alignment, const void* pc, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0 && current) misaligned(p, alignment, pc, what);
}

}  // namespace

void check_read(const void* p, size_t bytes, const char* what) {
  aligned_to(p, bytes, __builtin_return_address(0), what);
  access(p, bytes, kRead, __builtin_return_address(0), what);
}

void check_write(void* p, size_t bytes, const char* what) {
  aligned_to(p, bytes, __builtin_return_address(0), what);
  access(p, bytes, Stamp::kPlain, __builtin_return_address(0), what);
}

void check_atomic(void* p, size_t bytes) {
  aligned_to(p, bytes, __builtin_return_address(0), "atomic");
  access(p, bytes, Stamp::kAtomic, __builtin_return_address(0), "atomic");
}

void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes) {
  const void* pc = __builtin_return_address(0);
  Thread& t = self();
  Worker& w = *t.worker;
  auto to = reinterpret_cast<uintptr_t>(shared), from = reinterpret_cast<uintptr_t>(global);
  if (!w.is_shared(to)) w.fail("cp.async: its destination is not in shared memory", pc);
  aligned_to(shared, bytes, pc, "cp.async destination");
  w.shared_access(t, to, bytes, Stamp::kInFlight, pc, "cp.async");
  if (source_bytes) {
    if (w.is_shared(from)) w.fail("cp.async: its source is in shared memory", pc);
    aligned_to(global, bytes, pc, "cp.async source");
    w.global_access(from, source_bytes, kRead, pc, "cp.async");
  }
  t.copies.push_back({global, to - reinterpret_cast<uintptr_t>(w.shared), bytes, source_bytes});
}

void async_commit() {
  Thread& t = self();
  size_t committed = 0;
  for (size_t n : t.groups) committed += n;
  t.groups.push_back(t.copies.size() - committed);
}

void async_wait(unsigned groups_left) {
  Thread& t = self();
  if (t.groups.size() <= groups_left) return;
  auto last = t.groups.end() - groups_left;
  size_t landing = 0;
  for (auto group = t.groups.begin(); group != last; ++group) landing += *group;
  t.groups.erase(t.groups.begin(), last);
  for (size_t i = 0; i < landing; ++i) {
    const AsyncCopy& copy = t.copies[i];
    char* to = t.worker->shared + copy.offset;
    std::memcpy(to, copy.source, copy.source_bytes);
    std::memset(to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
    Shadow& shadow = t.worker->shadow;
    shadow.land({shadow.clocks.time(t.linear), Stamp::kPlain, t.linear}, copy.offset, copy.bytes);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<ptrdiff_t>(landing));
}

void launch(const Launch& l) {
  static std::vector<std::unique_ptr<Worker>> workers;
  if (has_fault()) return;  // as on a GPU, an error sticks until somebody takes it
  uint64_t threads = uint64_t{l.block.x} * l.block.y * l.block.z, blocks = uint64_t{l.grid.x} * l.grid.y * l.grid.z;
  if (threads == 0 || threads > kMaxThreads || l.block.z > 64 || blocks == 0 || l.grid.x >> 31 || l.grid.y > 65535 ||
      l.grid.z > 65535 || l.shared_bytes > max_shared_bytes()) {
    record_fault("launch of " + where(l.kernel) + ": no GPU takes a grid of " + std::to_string(blocks) + " blocks, " +
                 std::to_string(threads) + " threads a block and " + std::to_string(l.shared_bytes) +
                 " bytes of shared memory");
    return;
  }
  auto arguments = reinterpret_cast<uintptr_t>(l.arguments);
  Registered registered({arguments, arguments + l.arguments_bytes, false, "the kernel's parameters"});
  unsigned n = static_cast<unsigned>(std::min<uint64_t>(os_threads, blocks));
  while (workers.size() < n) workers.push_back(std::make_unique<Worker>());
  static uint32_t launches = 0;
  ++launches;
  for (auto& worker : workers) worker->launch_number = launches;
  std::atomic<uint64_t> next = 0;
  uint64_t seed = schedule_seed;
  auto run = [&](Worker& worker) {
    for (uint64_t i; (i = next++) < blocks && !has_fault();) {
      uint64_t b = seed % 2 ? blocks - 1 - i : i;
      unsigned x = static_cast<unsigned>(b % l.grid.x), y = static_cast<unsigned>(b / l.grid.x % l.grid.y);
      worker.run_block(l, {x, y, static_cast<unsigned>(b / l.grid.x / l.grid.y)}, seed ? seed + b : 0);
    }
  };
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < n; ++i) helpers.emplace_back([&, i] { run(*workers[i]); });
  run(*workers[0]);
  for (auto& helper : helpers) helper.join();
}

}  // namespace simt

// ---- every memory access of a kernel: the calls that -fsanitize=thread compiles in ----

extern "C" {

#define SIMT_HOOK(n)                                                                             \
  void __tsan_read##n(void* p) {                                                                 \
    if (!simt::current || simt::current->fiber.holds(p)) return;                                 \
    simt::aligned_to(p, n, __builtin_return_address(0), "read");                                 \
    simt::access(p, n, simt::kRead, __builtin_return_address(0), "read");                        \
  }                                                                                              \
  void __tsan_write##n(void* p) {                                                                \
    if (!simt::current || simt::current->fiber.holds(p)) return;                                 \
    simt::aligned_to(p, n, __builtin_return_address(0), "write");                                \
    simt::access(p, n, simt::Stamp::kPlain, __builtin_return_address(0), "write");               \
  }                                                                                              \
  void __tsan_unaligned_read##n(void* p) {                                                       \
    simt::access(p, n, simt::kRead, __builtin_return_address(0), "read");                        \
  }                                                                                              \
  void __tsan_unaligned_write##n(void* p) {                                                      \
    simt::access(p, n, simt::Stamp::kPlain, __builtin_return_address(0), "write");               \
  }
SIMT_HOOK(1)
SIMT_HOOK(2)
SIMT_HOOK(4)
SIMT_HOOK(8)
SIMT_HOOK(16)
#undef SIMT_HOOK

void __tsan_read_range(void* p, size_t n) { simt::access(p, n, simt::kRead, __builtin_return_address(0), "read"); }
void __tsan_write_range(void* p, size_t n) {
  simt::access(p, n, simt::Stamp::kPlain, __builtin_return_address(0), "write");
}
void __tsan_init() {}
// Host code asks with it whether a local static has been made.
uint8_t __tsan_atomic8_load(const volatile uint8_t* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

// ---- undefined behaviour: the calls that -fsanitize=alignment,bounds,... compiles in ----

#define SIMT_UB(name, message)                                                                       \
  void __ubsan_handle_##name(void*, ...) {                                                           \
    if (simt::current) simt::current->worker->fail(message, __builtin_return_address(0));            \
    simt::record_fault(std::string(message) + " on the host at " + simt::where(__builtin_return_address(0))); \
  }
SIMT_UB(type_mismatch_v1, "access through a pointer that is misaligned, null or outside its array")
SIMT_UB(out_of_bounds, "index outside an array")
SIMT_UB(shift_out_of_bounds, "shift by more than the width, or of a negative number")
SIMT_UB(divrem_overflow, "division by zero")
SIMT_UB(add_overflow, "overflow of a signed addition")
SIMT_UB(sub_overflow, "overflow of a signed subtraction")
SIMT_UB(mul_overflow, "overflow of a signed multiplication")
SIMT_UB(negate_overflow, "overflow of a signed negation")
SIMT_UB(missing_return, "end of a function that should have returned a value")
#undef SIMT_UB

// ---- for the tests ----

void* simt_allocate(size_t bytes, const char* name, int writable) { return simt::allocate(bytes, name, writable); }
void simt_release(void* p) { simt::release(p); }
void simt_set_schedule(uint64_t seed) { simt::schedule_seed = seed; }
void simt_set_os_threads(unsigned n) { simt::os_threads = n; }
void simt_set_compute_capability(int capability) { simt::device_capability = capability; }

// Copies the first fault since the last call, and forgets it; empty if there was none.
void simt_take_fault(char* out, size_t bytes) {
  std::lock_guard lock(simt::fault_lock);
  std::snprintf(out, bytes, "%s", simt::fault.c_str());
  simt::fault.clear();
  simt::faulty = false;
}

}  // extern "C"
