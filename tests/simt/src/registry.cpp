#include "registry.h"

#include <cstdlib>
#include <map>
#include <new>

#include "address_sanitizer.h"

namespace simt {
namespace {

constexpr size_t kRedZone = 4096, kAlignment = 256;  // of cudaMalloc

std::map<uintptr_t, Range>& ranges() {
  static std::map<uintptr_t, Range> all;
  return all;
}

}  // namespace

void* allocate(size_t bytes, const char* name, bool writable) {
  size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* base = static_cast<char*>(std::aligned_alloc(kAlignment, padded + 2 * kRedZone));
  if (!base) throw std::bad_alloc();
  poison(base, kRedZone);
  poison(base + kRedZone + bytes, padded - bytes + kRedZone);
  auto begin = reinterpret_cast<uintptr_t>(base + kRedZone);
  auto* marks = writable ? static_cast<uint64_t*>(std::calloc(bytes / 4 + 1, sizeof(uint64_t))) : nullptr;
  ranges()[begin] = {begin, begin + bytes, writable, name, marks};
  return base + kRedZone;
}

void release(void* p) {
  if (!p) return;
  auto range = ranges().find(reinterpret_cast<uintptr_t>(p));
  std::free(range->second.marks);
  ranges().erase(range);
  std::free(static_cast<char*>(p) - kRedZone);
}

Registered::Registered(Range range) : begin_(range.begin) { ranges()[begin_] = std::move(range); }
Registered::~Registered() { ranges().erase(begin_); }

const Range* find_range(uintptr_t p) {
  auto next = ranges().upper_bound(p);
  return next == ranges().begin() ? nullptr : &std::prev(next)->second;
}

}  // namespace simt
