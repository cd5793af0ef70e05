// The global memory that kernels may touch: every buffer that a test hands to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

struct Range {
  uintptr_t begin = 0, end = 0;
  bool writable = false;
  std::string name;
  uint64_t* marks = nullptr;  // of each four bytes, who wrote them: see order_across_blocks
  bool holds(uintptr_t p, size_t bytes) const { return p >= begin && p + bytes <= end; }
};

// Buffers lie far apart, so that running off one never lands in another. Not to be called while a kernel runs.
void* allocate(size_t bytes, const char* name, bool writable);
void release(void* p);

// Adds a range without allocating it, for as long as the object lives.
class Registered {
 public:
  explicit Registered(Range range);
  ~Registered();
  Registered(const Registered&) = delete;

 private:
  uintptr_t begin_;
};

const Range* find_range(uintptr_t p);  // the last range that begins at or before p, or null

}  // namespace simt
