// AddressSanitizer, in a process that has preloaded it to run kernels compiled for it: what it is told, and what it
// says. In any other process these do no more than jump.
#pragma once

#include <cstddef>

namespace simt {

bool under_address_sanitizer();

void poison(const void* p, size_t bytes);  // any access is a fault from now on
void unpoison(const void* p, size_t bytes);

// Where a __builtin_setjmp was called, and the stack that it was called on.
struct Context {
  void* state[5];
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};
[[noreturn]] void jump(Context& to);
void landed(Context* from = nullptr);  // after a jump; tells the stack that it came from

}  // namespace simt
