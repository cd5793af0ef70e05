// The random numbers of sampling.h: exponential variates by seed, position and token, in groups of 16 tokens.
#pragma once

#include "cpu/vec_int.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

constexpr int64_t kGroup = 16;  // tokens of a group: i, i + 16, ...
static_assert(kGroup == kLanes);

// Philox4x32-10 (Salmon et al. 2011), keyed by the seed.
struct Philox {
  uint64_t seed, position;

  // Words 0 and 1 at counters (position, group, 0) for 16 groups from this one on.
  PYBATCH_INLINE void lanes(int64_t group, I32x16 (&words)[2]) const {
    int32_t groups[kLanes];
    for (int i = 0; i < kLanes; ++i) groups[i] = static_cast<int32_t>(group) + i;
    I32x16 c[4] = {broadcast_int(static_cast<int32_t>(position)), broadcast_int(static_cast<int32_t>(position >> 32)),
                   load_ints(groups), broadcast_int(0)};
    rounds([&](uint32_t key0, uint32_t key1) PYBATCH_INLINE_LAMBDA {
      const WideInts a = multiply(c[0], kFirst), b = multiply(c[2], kSecond);
      c[0] = b.high ^ c[1] ^ broadcast_int(static_cast<int32_t>(key0));
      c[1] = b.low;
      c[2] = a.high ^ c[3] ^ broadcast_int(static_cast<int32_t>(key1));
      c[3] = a.low;
    });
    words[0] = c[0];
    words[1] = c[1];
  }

  // Word 0 at counter (position, token, 1).
  uint32_t word(int64_t token) const {
    uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                     static_cast<uint32_t>(token), 1};
    rounds([&](uint32_t key0, uint32_t key1) PYBATCH_INLINE_LAMBDA {
      const uint64_t a = uint64_t{kFirst} * c[0], b = uint64_t{kSecond} * c[2];
      c[0] = static_cast<uint32_t>(b >> 32) ^ c[1] ^ key0;
      c[1] = static_cast<uint32_t>(b);
      c[2] = static_cast<uint32_t>(a >> 32) ^ c[3] ^ key1;
      c[3] = static_cast<uint32_t>(a);
    });
    return c[0];
  }

 private:
  static constexpr uint32_t kFirst = 0xD2511F53, kSecond = 0xCD9E8D57;

  template <class F>
  PYBATCH_INLINE void rounds(F&& f) const {
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    for (int i = 0; i < 10; ++i, key[0] += 0x9E3779B9, key[1] += 0xBB67AE85) f(key[0], key[1]);
  }
};

// -log(1 - u), where u is the word's middle in units of 2^-32.
inline double exponential(uint32_t word) { return -__builtin_log1p(-(static_cast<double>(word) + 0.5) * 0x1p-32); }

// Which member of a group has its first time.
PYBATCH_INLINE int64_t first_of(uint32_t word) { return word >> 28; }

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
