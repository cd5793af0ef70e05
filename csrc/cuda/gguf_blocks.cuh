// The weight blocks of GGUF files (ggml's quantised types), 16 columns' blocks packed into a group as pybatch/matmul.h
// says. codes() gives the codes of four weights, 4 j to 4 j + 3 of a step, a byte each: of int8 numbers.
#pragma once

#include "cuda/common.cuh"
#include "pybatch/matmul.h"

namespace pybatch::cuda {

struct BlockScales {
  float scale[2], min;
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

// 32 weights: the low nibbles of 16 bytes, then the high ones.
struct Q4_0 : GgufConstants<GgufType::q4_0> {
  static constexpr int kOffset = 8;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int, int j) {
    return low_nibbles(word(group, j % 4, column) >> j / 4 * 4);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 4, 0, column);
    return {{d, d}, 0.0f};
  }
};

struct Q4_1 : GgufConstants<GgufType::q4_1> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return Q4_0::codes(group, column, step, j);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 4, 0, column);
    return {{d, d}, half_float(group, 4, 1, column)};
  }
};

struct Q8_0 : GgufConstants<GgufType::q8_0> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int, int j) {
    return word(group, j, column);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int) {
    const float d = half_float(group, 8, 0, column);
    return {{d, d}, 0.0f};
  }
};

// Words: 0-2 the scales and mins of eight steps, 6 bits each; then, for two steps at a time, 8 of nibbles.
struct Q4_K : GgufConstants<GgufType::q4_k> {
  static constexpr int kOffset = 0;
  static __device__ __forceinline__ uint32_t codes(const char* group, int column, int step, int j) {
    return low_nibbles(word(group, 3 + step / 2 * 8 + j, column) >> step % 2 * 4);
  }
  static __device__ __forceinline__ BlockScales scales(const char* group, int column, int step) {
    uint32_t scale = byte(word(group, 0, column), step % 4), min = byte(word(group, 1, column), step % 4);
    if (step < 4) {
      scale &= 63u;
      min &= 63u;
    } else {  // low four bits in word 2, the upper two above a scale and a min of the first four steps
      const uint32_t low = byte(word(group, 2, column), step % 4);
      scale = (low & 15u) | scale >> 6 << 4;
      min = low >> 4 | min >> 6 << 4;
    }
    const float d = half_float(group, 35, 0, column) * static_cast<float>(scale);
    return {{d, d}, -(half_float(group, 35, 1, column) * static_cast<float>(min))};
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
    return {{scale(0), scale(1)}, 0.0f};
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
  return scales.scale[i / 16] * static_cast<float>(static_cast<int8_t>(code) - Type::kOffset) + scales.min;
}

// Calls f with a null pointer that stands for the type.
template <class F>
__host__ __device__ void with_gguf_type(GgufType type, const F& f) {
  switch (type) {
    case GgufType::q4_0: return f(static_cast<Q4_0*>(nullptr));
    case GgufType::q4_1: return f(static_cast<Q4_1*>(nullptr));
    case GgufType::q8_0: return f(static_cast<Q8_0*>(nullptr));
    case GgufType::q4_k: return f(static_cast<Q4_K*>(nullptr));
    case GgufType::q6_k: return f(static_cast<Q6_K*>(nullptr));
  }
}

}  // namespace pybatch::cuda
