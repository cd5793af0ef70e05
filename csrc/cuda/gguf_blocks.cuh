// The weight blocks of GGUF files (ggml's quantised types), 16 columns' blocks packed into a group as pybatch/matmul.h
// says. codes() gives the codes of four weights, 4 j to 4 j + 3 of a step, a byte each: of int8 numbers.
#pragma once

#include "cuda/common.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

struct BlockScales {
  float scale[2], min[2];
};

__device__ __forceinline__ uint32_t word(const char* group, int w, int column) {
  return *reinterpret_cast<const uint32_t*>(group + w * 64 + column * 4);
}
// 16-bit float h; they follow the words.
__device__ __forceinline__ float half_float(const char* group, int words, int h, int column) {
  return to_float(*reinterpret_cast<const f16*>(group + words * 64 + h * 32 + column * 2));
}
__device__ __forceinline__ uint32_t byte(uint32_t word, int b) { return word >> 8 * b & 0xffu; }
__device__ __forceinline__ uint32_t low_nibbles(uint32_t word) { return word & 0x0f0f0f0fu; }
// Bit b of each byte.
__device__ __forceinline__ uint32_t bit(uint32_t word, int b) { return word >> b & 0x01010101u; }

// 32 weights: the low nibbles of 16 bytes, then the high ones.
struct Q4_0 : GgufConstants<GgufType::q4_0> {
  static constexpr int kOffset = 8;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int, int j) {
    return low_nibbles(word(group, j % 4, column) >> j / 4 * 4);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 4, 0, column);
    return {{d, d}, {}};
  }
};

struct Q4_1 : GgufConstants<GgufType::q4_1> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return Q4_0::codes(group, column, step, j);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 4, 0, column), m = half_float(group, 4, 1, column);
    return {{d, d}, {m, m}};
  }
};

// Words: 0 the fifth bits of 32 weights, a bit each; 1-4 their nibbles.
__device__ __forceinline__ uint32_t five_bits(const char* group, int column, int j) {
  const uint32_t four = word(group, 0, column) >> 4 * j & 15u;
  return low_nibbles(word(group, 1 + j % 4, column) >> j / 4 * 4) | (four * 0x00204081u & 0x01010101u) << 4;
}

struct Q5_0 : GgufConstants<GgufType::q5_0> {
  static constexpr int kOffset = 16;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int, int j) {
    return five_bits(group, column, j);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 5, 0, column);
    return {{d, d}, {}};
  }
};

struct Q5_1 : GgufConstants<GgufType::q5_1> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int, int j) {
    return five_bits(group, column, j);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 5, 0, column), m = half_float(group, 5, 1, column);
    return {{d, d}, {m, m}};
  }
};

struct Q8_0 : GgufConstants<GgufType::q8_0> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int, int j) {
    return word(group, j, column);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 8, 0, column);
    return {{d, d}, {}};
  }
};

// Words: 0-3 the scales and mins of 16 weights, 4 bits each; then, for each half of 128 weights, 8 of two bits.
struct Q2_K : GgufConstants<GgufType::q2_k> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return word(group, 4 + step / 4 * 8 + j, column) >> step % 4 * 2 & 0x03030303u;
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    const uint32_t both = word(group, step / 2, column) >> step % 2 * 16;
    const float d = half_float(group, 20, 0, column), dmin = half_float(group, 20, 1, column);
    auto scale = [&](int h) { return d * static_cast<float>(byte(both, h) & 15u); };
    auto min = [&](int h) { return -(dmin * static_cast<float>(byte(both, h) >> 4)); };
    return {{scale(0), scale(1)}, {min(0), min(1)}};
  }
};

// Words: 0-7 the third bits of each step, a bit of every byte; for each half of 128 weights, 8 of the lower two, from
// word 8; 24-26 the scales of 16 weights, 6 bits each, low nibbles first.
struct Q3_K : GgufConstants<GgufType::q3_k> {
  static constexpr int kOffset = 4;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    const uint32_t low = word(group, 8 + step / 4 * 8 + j, column) >> step % 4 * 2 & 0x03030303u;
    return low | bit(word(group, j, column), step) << 2;
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    const uint32_t low = word(group, 24 + step % 4 / 2, column) >> step / 4 * 4;
    const uint32_t high = word(group, 26, column) >> step / 2 * 2;
    const float d = half_float(group, 27, 0, column);
    auto scale = [&](int h) {
      const int b = step % 2 * 2 + h;
      return d * static_cast<float>(static_cast<int>((byte(low, b) & 15u) | (byte(high, b) & 3u) << 4) - 32);
    };
    return {{scale(0), scale(1)}, {}};
  }
};

// Words 0-2 are the scales and mins of eight steps, 6 bits each; d and dmin follow the last word.
__device__ __forceinline__ BlockScales scale_and_min(const char* group, int column, int step, int last) {
  uint32_t scale = byte(word(group, 0, column), step % 4), min = byte(word(group, 1, column), step % 4);
  if (step < 4) {
    scale &= 63u;
    min &= 63u;
  } else {  // low four bits in word 2, the upper two above a scale and a min of the first four steps
    const uint32_t low = byte(word(group, 2, column), step % 4);
    scale = (low & 15u) | scale >> 6 << 4;
    min = low >> 4 | min >> 6 << 4;
  }
  const float d = half_float(group, last, 0, column) * static_cast<float>(scale);
  const float m = -(half_float(group, last, 1, column) * static_cast<float>(min));
  return {{d, d}, {m, m}};
}

// Words: 0-2 scales and mins; then, for two steps at a time, 8 of nibbles.
struct Q4_K : GgufConstants<GgufType::q4_k> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return low_nibbles(word(group, 3 + step / 2 * 8 + j, column) >> step % 2 * 4);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    return scale_and_min(group, column, step, 35);
  }
};

// As Q4_K, with the fifth bits of each step, a bit of every byte, in words 3-10.
struct Q5_K : GgufConstants<GgufType::q5_k> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    const uint32_t low = low_nibbles(word(group, 11 + step / 2 * 8 + j, column) >> step % 2 * 4);
    return low | bit(word(group, 3 + j, column), step) << 4;
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    return scale_and_min(group, column, step, 43);
  }
};

// Words, for each half of 128 weights: low nibbles in 0-31, upper two bits in 32-47, int8 scales of 16 weights in
// 48-51.
struct Q6_K : GgufConstants<GgufType::q6_k> {
  static constexpr int kOffset = 32;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    const int half = step / 4, quarter = step % 4;
    const uint32_t low = word(group, half * 16 + quarter % 2 * 8 + j, column) >> quarter / 2 * 4;
    const uint32_t high = word(group, 32 + half * 8 + j, column) >> quarter * 2;
    return low_nibbles(low) | (high & 0x03030303u) << 4;
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    const int half = step / 4, quarter = step % 4;
    const uint32_t both = word(group, 48 + half * 2 + quarter / 2, column) >> quarter % 2 * 16;
    const float d = half_float(group, 52, 0, column);
    auto scale = [&](int h) { return d * static_cast<float>(static_cast<int8_t>(byte(both, h))); };
    return {{scale(0), scale(1)}, {}};
  }
};

// Numbers of a code book for four nibbles: prmt picks of eight by three bits of each, and then by the fourth.
template <const int8_t (&kValues)[16]>
__device__ __forceinline__ uint32_t look_up(uint32_t nibbles) {
  struct Book {
    uint32_t four[4];
  };
  constexpr Book kBook = [] {
    Book book{};
    for (int i = 0; i < 16; ++i) book.four[i / 4] |= (kValues[i] & 0xffu) << i % 4 * 8;
    return book;
  }();
  uint32_t selector = (nibbles | nibbles >> 4) & 0x00ff00ffu;
  selector |= selector >> 8;
  const uint32_t low = prmt(kBook.four[0], kBook.four[1], selector & 0x7777u);
  const uint32_t high = prmt(kBook.four[2], kBook.four[3], selector & 0x7777u);
  return prmt(low, high, 0x3210u + (selector >> 1 & 0x4444u));
}

struct IQ4_NL : GgufConstants<GgufType::iq4_nl> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return look_up<kIq4Values>(Q4_0::codes(group, column, step, j));
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    return Q4_0::scales(group, column, step);
  }
};

// Words: 0 the low nibbles of eight steps' scales, whose upper two bits lie behind d; then, for each step, 4 of
// nibbles.
struct IQ4_XS : GgufConstants<GgufType::iq4_xs> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return look_up<kIq4Values>(Q4_0::codes(group + (1 + 4 * step) * 64, column, step, j));
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    const uint32_t low = word(group, 0, column) >> 4 * step & 15u;
    const uint32_t upper = *reinterpret_cast<const uint16_t*>(group + 33 * 64 + 32 + column * 2) >> 2 * step & 3u;
    const float d = half_float(group, 33, 0, column) * static_cast<float>(static_cast<int>(low | upper << 4) - 32);
    return {{d, d}, {}};
  }
};

// A scale is 2 ^ (e - 128) of a byte e, made of two powers, since the smallest two are subnormal.
struct MXFP4 : GgufConstants<GgufType::mxfp4> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return look_up<kFp4Values>(Q4_0::codes(group, column, step, j));
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const uint32_t e = static_cast<uint8_t>(group[4 * 64 + column]), first = e >> 1;
    auto power = [](uint32_t n) { return __uint_as_float((n + (127 - 64)) << 23); };
    const float d = power(first) * power(e - first);
    return {{d, d}, {}};
  }
};

// Weight k of a column of packed weights.
template <class Type>
__device__ __forceinline__ float gguf_weight(const void* weight, int64_t width, int64_t column, int64_t k) {
  const int64_t group = column / kPanel * (width / Type::kWeights) + k / Type::kWeights;
  const char* at = static_cast<const char*>(weight) + group * (kPanel * Type::kBytes);
  const int lane = static_cast<int>(column % kPanel), in_group = static_cast<int>(k % Type::kWeights);
  const int step = in_group / 32, i = in_group % 32;
  const uint32_t code = byte(Type::codes(at, lane, step, i / 4), i % 4);
  const BlockScales scales = Type::scales(at, lane, step);
  return scales.scale[i / 16] * static_cast<float>(static_cast<int8_t>(code) - Type::kOffset) + scales.min[i / 16];
}

// Calls f with a null pointer that stands for the type.
template <class F>
__host__ __device__ void with_gguf_type(GgufType type, const F& f) {
  switch (type) {
    case GgufType::q4_0: return f(static_cast<Q4_0*>(nullptr));
    case GgufType::q4_1: return f(static_cast<Q4_1*>(nullptr));
    case GgufType::q5_0: return f(static_cast<Q5_0*>(nullptr));
    case GgufType::q5_1: return f(static_cast<Q5_1*>(nullptr));
    case GgufType::q8_0: return f(static_cast<Q8_0*>(nullptr));
    case GgufType::q2_k: return f(static_cast<Q2_K*>(nullptr));
    case GgufType::q3_k: return f(static_cast<Q3_K*>(nullptr));
    case GgufType::q4_k: return f(static_cast<Q4_K*>(nullptr));
    case GgufType::q5_k: return f(static_cast<Q5_K*>(nullptr));
    case GgufType::q6_k: return f(static_cast<Q6_K*>(nullptr));
    case GgufType::iq4_nl: return f(static_cast<IQ4_NL*>(nullptr));
    case GgufType::iq4_xs: return f(static_cast<IQ4_XS*>(nullptr));
    case GgufType::mxfp4: return f(static_cast<MXFP4*>(nullptr));
  }
}

}  // namespace pybatch::cuda
