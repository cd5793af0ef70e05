#include "engine.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <new>
#include <numeric>
#include <random>

namespace simt {

thread_local Thread* current = nullptr;

namespace {

std::string text(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

uint3 unflatten(unsigned i, dim3 extent) { return {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y}; }

bool same(const char* a, const char* b) { return a == b || !std::strcmp(a, b); }  // most often one literal

bool same(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() && same(a.file_name(), b.file_name());
}

}  // namespace

// Module and offset, which device.py turns into a source line.
std::string where(const void* pc) {
  Dl_info info;
  if (!dladdr(pc, &info)) return "an unknown place";
  char offset[32];
  std::snprintf(offset, sizeof offset, "+%#zx",
                static_cast<size_t>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)));
  return std::string(info.dli_fname) + offset;
}

std::string where(Location at) {
  std::string file = at.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(at.line());
}

Thread& needs_hopper(const char* name, Location at) {
  if (compute_capability() != 90) current->worker->fail(std::string(name) + " needs sm_90a", at);
  return *current;
}

Worker::Worker() {
  void* memory = mmap(nullptr, kWindowBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  window_ = reinterpret_cast<uintptr_t>(memory);
  shared = static_cast<char*>(memory) + kWindowBytes / 2;
  poison(memory, kWindowBytes);
}

Worker::~Worker() { munmap(reinterpret_cast<void*>(window_), kWindowBytes); }

void Worker::record(const std::string& message, const void* pc) {
  record_fault(message + "\n  in kernel " + where(launch->kernel) + ", block " + text(block) +
               (current ? ", thread " + text(current->index) : "") + (pc ? "\n  at " + where(pc) : ""));
}

void Worker::fail(const std::string& message, const void* pc) {
  record(message, pc);
  failed_ = true;
  current = nullptr;
  jump(main_);
}

void Worker::fail(const std::string& message, Location at) { fail(message + " at " + where(at)); }

void Worker::run_block(const Launch& l, uint3 index, uint64_t seed) {
  launch = &l;
  block = index;
  std::fill(std::begin(recent_), std::end(recent_), nullptr);
  count_ = live_ = l.block.x * l.block.y * l.block.z;
  unpoison(shared, l.shared_bytes);
  std::memset(shared, 0xff, l.shared_bytes);  // NaN in every floating-point format
  shadow.begin_block(count_);
  for (auto& b : barriers_) b.waiting.clear();
  for (auto& w : warpgroups_) w.name = nullptr, w.waiting.clear();
  std::fill(std::begin(registers_), std::end(registers_), 0);
  mbarriers_.clear();
  copies_.clear();
  atomics_ = 0;
  fenced_.clear();
  newest_first_ = seed % 2;
  for (unsigned w = 0; w * kWarp < count_; ++w) {
    pending_[w].clear();
    unsigned lanes = std::min(kWarp, count_ - w * kWarp);
    exited_lanes_[w] = lanes == kWarp ? 0 : ~0u << lanes;
  }
  while (threads_.size() < count_) {
    auto& t = threads_.emplace_back(std::make_unique<Thread>());
    t->worker = this;
    t->linear = static_cast<unsigned>(threads_.size()) - 1;
    t->fiber.prepare(run_thread, t.get(), t->linear);
  }
  ready_.resize(kMaxThreads);
  head_ = tail_ = 0;
  std::vector<unsigned> order(count_);
  std::iota(order.begin(), order.end(), 0);
  if (seed) std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
  for (unsigned i : order) {
    Thread& t = *threads_[i];
    t.index = unflatten(i, l.block);
    t.exited = false;
    t.has_waited = !l.overlaps;
    t.copies.clear();
    t.groups.clear();
    t.wgmmas.clear();
    t.wgmma_groups.clear();
    t.accumulators.clear();
    t.wgmma_fenced = false;
    t.not_fenced.clear();
    t.fenced_behind = 0;
    wake(t);
  }
  failed_ = false;
  main_.stack = nullptr;
  if (__builtin_setjmp(main_.state) == 0) run_next();
  landed();
  poison(shared, l.shared_bytes);
  current = nullptr;
  if (failed_) {  // fibers were left in the middle of the kernel
    for (unsigned i = 0; i < count_; ++i) threads_[i]->fiber.prepare(run_thread, threads_[i].get(), i);
  }
}

void Worker::run_thread(void* argument) {
  Thread& t = *static_cast<Thread*>(argument);
  t.worker->thread_landed();
  for (;;) {
    const Launch& l = *t.worker->launch;
    l.call(l.kernel, l.arguments);
    t.worker->exit(t);
  }
}

void Worker::wake(Thread& t) {
  t.waits_for = nullptr;
  ready_[tail_++ % kMaxThreads] = &t;
}

void Worker::run_next() {
  while (head_ == tail_ && live_ && !copies_.empty()) land_a_copy();
  if (head_ == tail_) {
    current = nullptr;
    if (live_) fail("deadlock: " + stuck());
    if (!copies_.empty()) fail("the block ends while bulk copies are on their way");
    jump(main_);
  }
  current = ready_[head_++ % kMaxThreads];
  jump(current->fiber.context);
}

void Worker::thread_landed() { landed(main_.stack ? nullptr : &main_); }

void Worker::block_thread(Thread& t, const char* what, Location at) {
  t.waits_for = what;
  t.waits_at = at;
  if (__builtin_setjmp(t.fiber.context.state) == 0) run_next();
  thread_landed();
}

void Worker::exit(Thread& t) {
  if (!t.wgmmas.empty()) fail("the thread returns while a wgmma is unfinished");
  if (!t.has_waited) fail("the thread returns without griddepcontrol.wait, while kernels before may run");
  t.exited = true;
  --live_;
  exited_lanes_[t.warp()] |= 1u << t.lane();
  for (const Barrier& b : barriers_) {
    if (b.expected == count_ && !b.waiting.empty()) {
      fail("divergent barrier: the thread returns while others wait for it at the barrier", b.at);
    }
  }
  if (__builtin_setjmp(t.fiber.context.state) == 0) run_next();
  thread_landed();
}

void Worker::barrier(Thread& t, int id, unsigned threads, Location at) {
  if (id < 0 || id > 15) fail("barrier " + std::to_string(id) + ": expected an id of 0 to 15", at);
  if (threads == 0 || threads > count_ || (threads % kWarp && threads != count_)) {
    fail("barrier " + std::to_string(id) + " for " + std::to_string(threads) +
             " threads: expected whole warps, at most the block's " + std::to_string(count_) + " threads", at);
  }
  Barrier& b = barriers_[id];
  if (threads == count_ && live_ < count_) {
    fail("divergent barrier: " + std::to_string(count_ - live_) + " threads have returned without reaching it", at);
  }
  if (b.waiting.empty()) {
    b.expected = threads;
    b.at = at;
  } else if (b.expected != threads) {
    fail("barrier " + std::to_string(id) + " for " + std::to_string(threads) + " threads, but others wait at it for " +
             std::to_string(b.expected), at);
  } else if (id == 0 && !same(b.at, at)) {
    fail("divergent barrier: other threads wait at the barrier at " + where(b.at) + ", this one comes to that", at);
  }
  b.waiting.push_back(&t);
  if (b.waiting.size() < threads) {
    block_thread(t, id ? "named_barrier_sync" : "__syncthreads", at);
    return;
  }
  std::vector<uint32_t> ids;
  for (Thread* other : b.waiting) ids.push_back(other->linear);
  shadow.clocks.join(ids.data(), threads);
  for (Thread* other : b.waiting) {
    if (other != &t) wake(*other);
  }
  b.waiting.clear();
}

void Worker::collective(Thread& t, unsigned mask, const char* name, void* operand, Apply apply, Location at) {
  unsigned mine = 1u << t.lane();
  if (!(mask & mine)) fail(std::string(name) + ": the calling lane is not in its mask", at);
  if (mask & exited_lanes_[t.warp()]) {
    fail(std::string(name) + ": its mask names lanes that have returned from the kernel or do not exist", at);
  }
  auto& pending = pending_[t.warp()];
  auto slot = std::find_if(pending.begin(), pending.end(), [&](const Pending& p) { return p.mask & mask; });
  if (slot == pending.end()) {
    pending.push_back({name, at, mask, 0, {}});
    slot = pending.end() - 1;
  } else if (slot->mask != mask || !same(slot->name, name) || !same(slot->at, at)) {
    fail("divergent warp: other lanes of the warp wait at " + std::string(slot->name) + " at " + where(slot->at) +
             ", this one comes to " + name, at);
  }
  slot->arrived |= mine;
  slot->operands[t.lane()] = operand;
  if (slot->arrived != mask) {
    block_thread(t, name, at);
    return;
  }
  Pending done = *slot;
  pending.erase(slot);
  apply(done.operands, mask);
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask & ~mine) >> lane & 1) wake(*threads_[t.warp() * kWarp + lane]);
  }
}

void Worker::warpgroup(Thread& t, const char* name, uint64_t operand, const std::function<void()>& last, Location at) {
  WarpgroupPending& p = warpgroups_[t.linear / kWarpgroup];
  if (t.linear / kWarpgroup * kWarpgroup + kWarpgroup > count_) fail(std::string(name) + ": not in a warpgroup", at);
  if (p.name == nullptr) {
    p.name = name, p.at = at, p.operand = operand;
  } else if (!same(p.name, name) || p.operand != operand || !same(p.at, at)) {
    fail("divergent warpgroup: other threads of it wait at " + std::string(p.name) + " at " + where(p.at) +
             ", this one comes to " + name + (same(p.name, name) ? " with other operands" : ""), at);
  }
  p.waiting.push_back(&t);
  if (p.waiting.size() < kWarpgroup) {
    block_thread(t, name, at);
    return;
  }
  last();
  for (Thread* other : p.waiting) {
    if (other != &t) wake(*other);
  }
  p.waiting.clear();
  p.name = nullptr;
}

std::string Worker::locate(uintptr_t p) const {
  constexpr size_t kNear = 4096;
  auto within = [p](uintptr_t begin, const std::string& name, size_t bytes) {
    return "at byte " + std::to_string(static_cast<int64_t>(p - begin)) + " of " + name + ", which has " +
           std::to_string(bytes) + " bytes";
  };
  if (is_shared(p)) return within(reinterpret_cast<uintptr_t>(shared), "shared memory", launch->shared_bytes);
  const Range* range = find_range(p);
  return range && p < range->end + kNear ? within(range->begin, range->name, range->end - range->begin) : "";
}

std::string Worker::stuck() const {
  std::map<std::string, unsigned> waits;
  for (unsigned i = 0; i < count_; ++i) {
    const Thread& t = *threads_[i];
    if (!t.exited) ++waits[std::string(t.waits_for) + " at " + where(t.waits_at)];
  }
  std::string out;
  for (const auto& [what, n] : waits) out += (out.empty() ? "" : ", ") + std::to_string(n) + " threads wait at " + what;
  if (live_ < count_) out += ", " + std::to_string(count_ - live_) + " have returned";
  for (const auto& [offset, b] : mbarriers_) {
    if (b.waiting.empty()) continue;
    out += "; the mbarrier at byte " + std::to_string(offset) + " waits for " + std::to_string(b.pending) +
           " arrivals and " + std::to_string(b.bytes) + " bytes";
  }
  return out;
}

void Worker::global_access(uintptr_t p, size_t bytes, int kind, const void* pc, const char* what) {
  const bool write = kind != kRead;
  const auto arguments = reinterpret_cast<uintptr_t>(launch->arguments);
  if (!current->has_waited && p - arguments >= launch->arguments_bytes) {
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes before griddepcontrol.wait, while kernels before may run",
         pc);
  }
  auto allowed = [&](const Range* range) { return range && range->holds(p, bytes) && (range->writable || !write); };
  const auto recent = std::find_if(std::begin(recent_), std::end(recent_), allowed);
  const Range* range = recent != std::end(recent_) ? *recent : find_range(p);
  if (allowed(range) && range->marks != nullptr) order_across_blocks(*current, *range, p, bytes, kind, pc, what);
  if (recent != std::end(recent_)) return;
  if (allowed(range)) {
    std::copy_backward(std::begin(recent_), std::end(recent_) - 1, std::end(recent_));
    recent_[0] = range;
    return;
  }
  Dl_info target, kernel;
  if (!write && dladdr(reinterpret_cast<void*>(p), &target) && dladdr(pc, &kernel) &&
      target.dli_fbase == kernel.dli_fbase)
    return;  // a constant of the kernel's own module
  std::string message = std::string(what) + " of " + std::to_string(bytes) + " bytes ";
  std::string at = locate(p);
  if (at.empty()) {
    message += "outside every buffer";
  } else if (p + bytes > range->end) {
    message += "out of bounds: " + at;
  } else {
    message += "to " + range->name + ", which is an input";
  }
  fail(message, pc);
}

void Worker::shared_access(Thread& t, uintptr_t p, size_t bytes, int kind, const void* pc, const char* what,
                           bool by_proxy) {
  size_t offset = p - reinterpret_cast<uintptr_t>(shared);
  if (offset + bytes > launch->shared_bytes || offset + bytes < bytes) {
    fail(std::string(what) + " of " + std::to_string(bytes) + " bytes out of bounds: " + locate(p), pc);
  }
  if (under_address_sanitizer()) return;  // the kernel's own accesses, which the shadow would have to know, go past it
  Conflict c = kind < 0 ? shadow.read(t.linear, offset, bytes, by_proxy)
                        : shadow.write(t.linear, offset, bytes, static_cast<Stamp::Kind>(kind), by_proxy);
  if (!c.what) return;
  std::string place = std::string(what) + " of " + std::to_string(bytes) + " bytes of shared memory at byte " +
                      std::to_string(c.offset) + " ";
  std::string other = c.thread == shadow.clocks.copier() ? "an asynchronous copy"
                                                         : "thread " + text(unflatten(c.thread, launch->block));
  switch (c.what) {
    case Conflict::kNeverWritten: fail(place + "that nothing has written", pc);
    case Conflict::kInFlight: fail(place + "where an asynchronous copy of " + other + " has not been waited for", pc);
    case Conflict::kNotFenced:
      fail(place + "that " + other + " wrote with no fence.proxy.async after it", pc);
    default:
      fail(place + "races with a " + (c.earlier_write ? "write" : "read") + " by " + other +
               ": no barrier lies between them", pc);
  }
}

}  // namespace simt
