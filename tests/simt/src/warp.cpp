// Shuffles and votes. They reach into the stacks of other lanes, so they are no part of the checked kernel code.
#include "simt/runtime.h"

namespace simt {
namespace {

struct Exchange {
  uint64_t value, result;
  int source;
};

struct Vote {
  bool predicate;
  unsigned ballot;
};

}  // namespace

uint64_t exchange(unsigned mask, uint64_t value, int source, const char* name, Location at) {
  constexpr uint64_t kUndefined = 0xdeaddeaddeaddead;
  Exchange operand{value, value, source};
  Apply apply = [](void* const operands[32], unsigned lanes) {
    for (unsigned i = 0; i < 32; ++i) {
      auto* mine = static_cast<Exchange*>(operands[i]);
      if (!(lanes >> i & 1) || mine->source < 0) continue;
      bool takes_part = lanes >> mine->source & 1;
      mine->result = takes_part ? static_cast<Exchange*>(operands[mine->source])->value : kUndefined;
    }
  };
  collective(mask, name, &operand, apply, at);
  return operand.result;
}

unsigned vote(unsigned mask, bool predicate, const char* name, Location at) {
  Vote operand{predicate, 0};
  Apply apply = [](void* const operands[32], unsigned lanes) {
    unsigned ballot = 0;
    for (unsigned i = 0; i < 32; ++i) {
      if (lanes >> i & 1 && static_cast<Vote*>(operands[i])->predicate) ballot |= 1u << i;
    }
    for (unsigned i = 0; i < 32; ++i) {
      if (lanes >> i & 1) static_cast<Vote*>(operands[i])->ballot = ballot;
    }
  };
  collective(mask, name, &operand, apply, at);
  return operand.ballot;
}

}  // namespace simt
