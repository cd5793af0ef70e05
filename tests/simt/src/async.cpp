// Barriers in shared memory, bulk and tensor copies (PTX ISA 8.5, sections 9.7.13.15, 9.7.9.25 and 5.5).
#include "simt/async.h"

#include <algorithm>
#include <cstring>

#include "engine.h"

namespace simt {
namespace {

constexpr int64_t kMaxBytes = (1 << 20) - 1;  // that a phase can wait for
constexpr uint32_t kMaxCount = (1 << 20) - 1;

size_t offset_in_shared(Thread& t, const void* p, const char* what, Location at) {
  auto address = reinterpret_cast<uintptr_t>(p);
  if (!t.worker->is_shared(address)) t.worker->fail(std::string(what) + " is not in shared memory", at);
  return address - reinterpret_cast<uintptr_t>(t.worker->shared);
}

void expect_multiple(Thread& t, uint64_t value, uint64_t of, const char* what, Location at) {
  if (value % of == 0) return;
  t.worker->fail(std::string("misaligned: ") + what + " is " + std::to_string(value) + ", no multiple of " +
                     std::to_string(of), at);
}

}  // namespace

// ---- barriers ----

Mbarrier& Worker::mbarrier(Thread& t, size_t offset, const char* what, Location at) {
  auto found = mbarriers_.find(offset);
  if (found == mbarriers_.end()) fail(std::string(what) + ": there is no mbarrier", at);
  shared_access(t, reinterpret_cast<uintptr_t>(shared) + offset, sizeof(uint64_t), -1, nullptr, what);
  return found->second;
}

void Worker::mbarrier_init(Thread& t, size_t offset, uint32_t count, Location at) {
  expect_multiple(t, offset, sizeof(uint64_t), "the mbarrier's address", at);
  if (count == 0 || count > kMaxCount) fail("mbarrier.init: expected a count of 1 to 2^20 - 1", at);
  shared_access(t, reinterpret_cast<uintptr_t>(shared) + offset, sizeof(uint64_t), Stamp::kPlain, nullptr,
                "mbarrier.init");
  mbarriers_[offset] = {count, count, 0, 0, {}, {}, {}};
}

void Worker::end_phase_if_complete(Mbarrier& b) {
  if (b.pending || b.bytes) return;
  b.parity ^= 1;
  b.pending = b.count;
  b.completed = b.arriving;
  for (Thread* other : b.waiting) wake(*other);
  b.waiting.clear();
}

void Worker::mbarrier_arrive(Thread& t, size_t offset, uint32_t expected_bytes, Location at) {
  Mbarrier& b = mbarrier(t, offset, "mbarrier.arrive", at);
  if (b.pending == 0) fail("mbarrier.arrive: the phase has had all its " + std::to_string(b.count) + " arrivals", at);
  b.bytes += expected_bytes;
  if (b.bytes > kMaxBytes) fail("mbarrier.arrive.expect_tx: a phase can wait for at most 2^20 - 1 bytes", at);
  shadow.clocks.release(t.linear, b.arriving);
  --b.pending;
  end_phase_if_complete(b);
}

void Worker::mbarrier_wait(Thread& t, size_t offset, uint32_t parity, Location at) {
  Mbarrier& b = mbarrier(t, offset, "mbarrier.try_wait", at);
  if (parity > 1) fail("mbarrier.try_wait.parity: expected 0 or 1", at);
  if (b.parity == parity) {
    b.waiting.push_back(&t);
    block_thread(t, "mbarrier.try_wait", at);
  }
  shadow.clocks.acquire(t.linear, b.completed);
}

void mbarrier_init(uint64_t* barrier, uint32_t count, Location at) {
  Thread& t = needs_hopper("mbarrier.init", at);
  t.worker->mbarrier_init(t, offset_in_shared(t, barrier, "the mbarrier", at), count, at);
}

void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, Location at) {
  Thread& t = needs_hopper("mbarrier.arrive", at);
  t.worker->mbarrier_arrive(t, offset_in_shared(t, barrier, "the mbarrier", at), expected_bytes, at);
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity, Location at) {
  Thread& t = needs_hopper("mbarrier.try_wait", at);
  t.worker->mbarrier_wait(t, offset_in_shared(t, barrier, "the mbarrier", at), parity, at);
}

void fence_proxy_async() { current->worker->shadow.clocks.fence_proxy(current->linear); }

// ---- copies ----

void Worker::start_copy(Thread& t, BulkCopy copy, Location at) {
  mbarrier(t, copy.barrier, "a bulk copy", at);
  auto base = reinterpret_cast<uintptr_t>(shared);
  shared_access(t, base + copy.barrier, sizeof(uint64_t), -1, nullptr, "a bulk copy's use of an mbarrier", true);
  shared_access(t, base + copy.offset, copy.bytes, Stamp::kInFlight, nullptr, "a bulk copy", true);
  copies_.push_back(std::move(copy));
}

void Worker::land_a_copy() {
  auto next = newest_first_ ? copies_.end() - 1 : copies_.begin();
  BulkCopy copy = std::move(*next);
  copies_.erase(next);
  copy.land();
  Mbarrier& b = mbarriers_[copy.barrier];
  shadow.land({shadow.clocks.land(b.arriving), Stamp::kPlain, shadow.clocks.copier()}, copy.offset, copy.bytes);
  b.bytes -= copy.bytes;
  end_phase_if_complete(b);
}

namespace {

// The threads of a block, and the copies beside them, have ten bits in a Stamp.
void check_block(Thread& t, Location at) {
  const dim3 n = t.worker->launch->block;
  if (n.x * n.y * n.z == kMaxThreads) t.worker->fail("a bulk copy in a block of 1024 threads: one too many here", at);
}

}  // namespace

void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier, Location at) {
  Thread& t = needs_hopper("cp.async.bulk", at);
  check_block(t, at);
  size_t offset = offset_in_shared(t, shared, "cp.async.bulk: the destination", at);
  expect_multiple(t, offset, 16, "cp.async.bulk's destination", at);
  expect_multiple(t, reinterpret_cast<uintptr_t>(global), 16, "cp.async.bulk's source", at);
  expect_multiple(t, bytes, 16, "cp.async.bulk's size", at);
  if (bytes == 0) t.worker->fail("cp.async.bulk of no bytes", at);
  t.worker->global_access(reinterpret_cast<uintptr_t>(global), bytes, kRead, nullptr, "cp.async.bulk");
  char* to = static_cast<char*>(shared);
  t.worker->start_copy(t, {offset_in_shared(t, barrier, "the mbarrier", at), offset, bytes,
                           [=] { std::memcpy(to, global, bytes); }}, at);
}

void tensor_copy(void* shared, const CUtensorMap& map, int32_t x, int32_t y, uint64_t* barrier, Location at) {
  Thread& t = needs_hopper("cp.async.bulk.tensor", at);
  check_block(t, at);
  Worker& w = *t.worker;
  size_t offset = offset_in_shared(t, shared, "cp.async.bulk.tensor: the destination", at);
  expect_multiple(t, offset, 128, "cp.async.bulk.tensor's destination", at);
  // Columns and rows of the box that lie in the matrix.
  auto clip = [](int64_t first, uint32_t box, uint64_t extent) {
    return std::pair(std::clamp<int64_t>(-first, 0, box),
                     std::clamp<int64_t>(static_cast<int64_t>(extent) - first, 0, box));
  };
  auto columns = clip(x, map.box[0], map.extent[0]), rows = clip(y, map.box[1], map.extent[1]);
  auto source = [=](int64_t row, int64_t column) {
    return map.data + (y + row) * static_cast<int64_t>(map.row_stride) + x + column;
  };
  if (columns.first < columns.second) {
    for (int64_t row = rows.first; row < rows.second; ++row) {
      w.global_access(reinterpret_cast<uintptr_t>(source(row, columns.first)),
                      static_cast<size_t>(columns.second - columns.first), kRead, nullptr, "cp.async.bulk.tensor");
    }
  }
  char* base = w.shared;
  auto land = [=] {
    for (uint32_t row = 0; row < map.box[1]; ++row) {
      for (uint32_t column = 0; column < map.box[0]; ++column) {
        bool inside = row >= rows.first && row < rows.second && column >= columns.first && column < columns.second;
        size_t to = offset + row * map.box[0] + column;
        // 128-byte swizzle: bits 4 to 6 of the address are turned by bits 7 to 9.
        if (map.swizzle == CU_TENSOR_MAP_SWIZZLE_128B) to ^= (to >> 7 & 7) << 4;
        base[to] = inside ? *source(row, column) : char{0};
      }
    }
  };
  w.start_copy(t, {offset_in_shared(t, barrier, "the mbarrier", at), offset, map.box[0] * map.box[1], land}, at);
}

}  // namespace simt

// ---- the driver's part ----

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                const cuuint64_t* extent, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  auto fits = [](uint64_t x, uint64_t most) { return x >= 1 && x <= most; };
  constexpr uint64_t kMaxExtent = uint64_t{1} << 32, kMaxStride = uint64_t{1} << 40;
  bool valid = rank == 2 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && fits(extent[0], kMaxExtent) &&
               fits(extent[1], kMaxExtent) && strides[0] % 16 == 0 && strides[0] < kMaxStride && fits(box[0], 256) &&
               fits(box[1], 256) && box[0] % 16 == 0 && steps[0] == 1 && steps[1] == 1 &&
               (swizzle != CU_TENSOR_MAP_SWIZZLE_128B || box[0] <= 128);
  if (!valid) return CUDA_ERROR_INVALID_VALUE;
  *map = {static_cast<const char*>(data), {extent[0], extent[1]}, strides[0], {box[0], box[1]}, swizzle};
  return CUDA_SUCCESS;
}

void* simt::driver_function(const char* symbol) {
  return std::strcmp(symbol, "cuTensorMapEncodeTiled") ? nullptr : reinterpret_cast<void*>(cuTensorMapEncodeTiled);
}
