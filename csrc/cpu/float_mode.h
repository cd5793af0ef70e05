// How floating-point numbers are computed on a thread: what becomes of subnormal ones, and rounding.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pybatch {

// The calling thread computes by IEEE 754's defaults as long as this lives. A program may have set something else, on
// some of its threads: torch.set_flush_denormal does, and libraries that were linked with -ffast-math as they are
// loaded. Subnormal float8 weights would be zeros then, and a row's bits would depend on who computes it.
class DefaultFloats {
 public:
  DefaultFloats() {
    if (before_ != kDefault) set(kDefault);
  }
  ~DefaultFloats() {
    if (before_ != kDefault) set(before_);
  }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__)
  static constexpr uint64_t kDefault = 0x1f80;             // all exceptions masked
  static uint64_t get() { return _mm_getcsr() & ~0x3fu; }  // without those that have been
  static void set(uint64_t mode) { _mm_setcsr(static_cast<uint32_t>(mode)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kDefault = 0;
  static uint64_t get() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static constexpr uint64_t kDefault = 0;
  static uint64_t get() { return kDefault; }
  static void set(uint64_t) {}
#endif

  const uint64_t before_ = get();
};

}  // namespace pybatch
