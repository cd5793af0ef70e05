// The weight blocks of GGUF files (ggml's quantised types), 16 columns' blocks packed into a group as
// pybatch/matmul.h says; unpack(group, step) gives the 32 weights of a step.
#pragma once

#include "cpu/vec_int.h"
#include "pybatch/matmul.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

struct Unpacked {
  I32x16 codes[8];  // lane c of codes[j]: bytes 4j .. 4j+3 of column c
  F32x16 scale[2];
  F32x16 min;
};

// Word w of each column, a lane each.
PYBATCH_INLINE I32x16 words(const char* group, int w) { return load_ints(group + w * 64); }
// 16-bit float h of each column; they follow the words.
PYBATCH_INLINE F32x16 halves(const char* group, int words, int h) {
  return load(reinterpret_cast<const f16*>(group + words * 64 + h * 32));
}
PYBATCH_INLINE I32x16 bytes(int x) { return broadcast_int(0x01010101 * x); }
// Byte b of each lane, as a number.
PYBATCH_INLINE I32x16 byte(I32x16 a, int b) { return (a >> (8 * b)) & broadcast_int(0xff); }
PYBATCH_INLINE F32x16 signed_byte(I32x16 a, int b) { return to_float(signed_top_byte(a << (24 - 8 * b))); }

// 32 weights: the low nibbles of 16 bytes, then the high ones.
PYBATCH_INLINE void unpack_nibbles(const char* group, I32x16* codes) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    I32x16 both = words(group, j);
    codes[j] = both & bytes(15);
    codes[j + 4] = (both >> 4) & bytes(15);
  }
}

struct Q4_0 : GgufConstants<GgufType::q4_0> {
  static constexpr int kOffset = 8, kMaxCode = 15;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
    unpack_nibbles(group, w.codes);
    w.scale[0] = halves(group, 4, 0);
    return w;
  }
};

struct Q4_1 : GgufConstants<GgufType::q4_1> {
  static constexpr int kOffset = 0, kMaxCode = 15;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
    unpack_nibbles(group, w.codes);
    w.scale[0] = halves(group, 4, 0);
    w.min = halves(group, 4, 1);
    return w;
  }
};

struct Q8_0 : GgufConstants<GgufType::q8_0> {
  static constexpr int kOffset = kSignedOffset, kMaxCode = 255;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w.codes[j] = words(group, j) ^ bytes(kOffset);
    w.scale[0] = halves(group, 8, 0);
    return w;
  }
};

// Words: 0-2 the scales and mins of eight steps, 6 bits each; then, for two steps at a time, 8 of nibbles.
struct Q4_K : GgufConstants<GgufType::q4_k> {
  static constexpr int kOffset = 0, kMaxCode = 15;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w.codes[j] = (words(group, 3 + step / 2 * 8 + j) >> (step % 2 * 4)) & bytes(15);
    I32x16 scale = byte(words(group, 0), step % 4), min = byte(words(group, 1), step % 4);
    if (step < 4) {
      scale = scale & broadcast_int(63);
      min = min & broadcast_int(63);
    } else {  // low four bits in word 2, the upper two above a scale and a min of the first four steps
      I32x16 low = byte(words(group, 2), step % 4);
      scale = (low & broadcast_int(15)) | (scale >> 6 << 4);
      min = (low >> 4) | (min >> 6 << 4);
    }
    w.scale[0] = halves(group, 35, 0) * to_float(scale);
    w.min = zeros() - halves(group, 35, 1) * to_float(min);
    return w;
  }
};

// Words, for each half of 128 weights: low nibbles in 0-31, upper two bits in 32-47, int8 scales of 16 weights in
// 48-51.
struct Q6_K : GgufConstants<GgufType::q6_k> {
  static constexpr int kOffset = 32, kMaxCode = 63;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
    int half = step / 4, quarter = step % 4;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      I32x16 low = (words(group, half * 16 + quarter % 2 * 8 + j) >> (quarter / 2 * 4)) & bytes(15);
      I32x16 high = (words(group, 32 + half * 8 + j) >> (quarter * 2)) & bytes(3);
      w.codes[j] = low | (high << 4);
    }
    I32x16 scales = words(group, 48 + half * 2 + quarter / 2);
    F32x16 d = halves(group, 52, 0);
    w.scale[0] = d * signed_byte(scales, quarter % 2 * 2);
    w.scale[1] = d * signed_byte(scales, quarter % 2 * 2 + 1);
    return w;
  }
};

// Calls f with a null pointer that stands for the type.
template <class F>
PYBATCH_INLINE void with_gguf_type(GgufType type, F&& f) {
  switch (type) {
    case GgufType::q4_0: return f(static_cast<Q4_0*>(nullptr));
    case GgufType::q4_1: return f(static_cast<Q4_1*>(nullptr));
    case GgufType::q8_0: return f(static_cast<Q8_0*>(nullptr));
    case GgufType::q4_k: return f(static_cast<Q4_K*>(nullptr));
    case GgufType::q6_k: return f(static_cast<Q6_K*>(nullptr));
  }
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
