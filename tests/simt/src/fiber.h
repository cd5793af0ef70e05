// Stackful coroutines: ucontext gives each its stack, the compiler's setjmp and longjmp switch in a few instructions.
#pragma once

#include <ucontext.h>

#include <cstddef>

#include "address_sanitizer.h"

namespace simt {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 << 10;

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // Makes the next jump(context) call entry(argument), which must never return. `color` staggers the stacks of many
  // fibers, whose tops would else share the same cache sets.
  void prepare(void (*entry)(void*), void* argument, unsigned color);

  bool holds(const void* p) const {
    return static_cast<size_t>(static_cast<const char*>(p) - stack_) < kStackBytes;
  }

  Context context;

 private:
  static void first_entry(unsigned high, unsigned low);

  char* stack_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  ucontext_t creator_, start_;
};

}  // namespace simt
