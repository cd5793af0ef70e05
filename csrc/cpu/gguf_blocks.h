// The weight blocks of GGUF files (ggml's quantised types), 16 columns' blocks packed into a group as
// pybatch/matmul.h says; unpack(group, step) gives the 32 weights of a step.
#pragma once

#include "cpu/vec_bytes.h"
#include "pybatch/matmul.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

struct Unpacked {
  I32x16 codes[8];  // lane c of codes[j]: bytes 4j .. 4j+3 of column c
  F32x16 scale[2];
  F32x16 min[2];
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
// Bit b of each byte.
PYBATCH_INLINE I32x16 bit(I32x16 a, int b) { return (a >> b) & bytes(1); }

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
    w.min[0] = halves(group, 4, 1);
    return w;
  }
};

// Words: 0 the fifth bits of 32 weights, a bit each; 1-4 their nibbles.
PYBATCH_INLINE void unpack_five_bits(const char* group, I32x16* codes) {
  unpack_nibbles(group + 64, codes);
  const I32x16 fifth = words(group, 0);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    const I32x16 eight = spread_byte(fifth, j / 2), four = j % 2 == 0 ? eight : eight >> 4;
    // Of each byte another bit is left, which the sum carries to bit 4.
    codes[j] = codes[j] | (((four & broadcast_int(0x08040201)) + bytes(15)) & bytes(16));
  }
}

struct Q5_0 : GgufConstants<GgufType::q5_0> {
  static constexpr int kOffset = 16, kMaxCode = 31;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
    unpack_five_bits(group, w.codes);
    w.scale[0] = halves(group, 5, 0);
    return w;
  }
};

struct Q5_1 : GgufConstants<GgufType::q5_1> {
  static constexpr int kOffset = 0, kMaxCode = 31;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
    unpack_five_bits(group, w.codes);
    w.scale[0] = halves(group, 5, 0);
    w.min[0] = halves(group, 5, 1);
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

// Words: 0-3 the scales and mins of 16 weights, 4 bits each; then, for each half of 128 weights, 8 of two bits.
struct Q2_K : GgufConstants<GgufType::q2_k> {
  static constexpr int kOffset = 0, kMaxCode = 3;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w.codes[j] = (words(group, 4 + step / 4 * 8 + j) >> (step % 4 * 2)) & bytes(3);
    const F32x16 d = halves(group, 20, 0), dmin = halves(group, 20, 1);
    const I32x16 both = words(group, step / 2) >> (step % 2 * 16);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      w.scale[half] = d * to_float((both >> (8 * half)) & broadcast_int(15));
      w.min[half] = zeros() - dmin * to_float((both >> (8 * half + 4)) & broadcast_int(15));
    }
    return w;
  }
};

// Words: 0-7 the third bits of each step, a bit of every byte; for each half of 128 weights, 8 of the lower two, from
// word 8; 24-26 the scales of 16 weights, 6 bits each, low nibbles first.
struct Q3_K : GgufConstants<GgufType::q3_k> {
  static constexpr int kOffset = 4, kMaxCode = 7;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      I32x16 low = (words(group, 8 + step / 4 * 8 + j) >> (step % 4 * 2)) & bytes(3);
      w.codes[j] = low | (bit(words(group, j), step) << 2);
    }
    const F32x16 d = halves(group, 27, 0);
    const I32x16 low = words(group, 24 + step % 4 / 2) >> (step / 4 * 4), high = words(group, 26) >> (step / 2 * 2);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int b = step % 2 * 2 + half;
      const I32x16 scale = (byte(low, b) & broadcast_int(15)) | ((byte(high, b) & broadcast_int(3)) << 4);
      w.scale[half] = d * to_float(scale + broadcast_int(-32));
    }
    return w;
  }
};

// Words 0-2 are the scales and mins of eight steps, 6 bits each; d and dmin follow the last word.
PYBATCH_INLINE void unpack_scale_and_min(const char* group, int step, int last, Unpacked& w) {
  I32x16 scale = byte(words(group, 0), step % 4), min = byte(words(group, 1), step % 4);
  if (step < 4) {
    scale = scale & broadcast_int(63);
    min = min & broadcast_int(63);
  } else {  // low four bits in word 2, the upper two above a scale and a min of the first four steps
    I32x16 low = byte(words(group, 2), step % 4);
    scale = (low & broadcast_int(15)) | (scale >> 6 << 4);
    min = (low >> 4) | (min >> 6 << 4);
  }
  w.scale[0] = halves(group, last, 0) * to_float(scale);
  w.min[0] = zeros() - halves(group, last, 1) * to_float(min);
}

// Words: 0-2 scales and mins; then, for two steps at a time, 8 of nibbles.
struct Q4_K : GgufConstants<GgufType::q4_k> {
  static constexpr int kOffset = 0, kMaxCode = 15;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w.codes[j] = (words(group, 3 + step / 2 * 8 + j) >> (step % 2 * 4)) & bytes(15);
    unpack_scale_and_min(group, step, 35, w);
    return w;
  }
};

// As Q4_K, with the fifth bits of each step, a bit of every byte, in words 3-10.
struct Q5_K : GgufConstants<GgufType::q5_k> {
  static constexpr int kOffset = 0, kMaxCode = 31;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      I32x16 low = (words(group, 11 + step / 2 * 8 + j) >> (step % 2 * 4)) & bytes(15);
      w.codes[j] = low | (bit(words(group, 3 + j), step) << 4);
    }
    unpack_scale_and_min(group, step, 43, w);
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

// Nibbles that name numbers of a code book, whose bytes have had an offset added.
template <const int8_t (&kValues)[16], int kOffset>
PYBATCH_INLINE void unpack_code_book(const char* group, I32x16* codes) {
  static constexpr CodeBook kBook = [] {
    CodeBook book{};
    for (int i = 0; i < 16; ++i) book.bytes[i] = static_cast<uint8_t>(kValues[i] + kOffset);
    return book;
  }();
  unpack_nibbles(group, codes);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) codes[j] = look_up(kBook, codes[j]);
}

struct IQ4_NL : GgufConstants<GgufType::iq4_nl> {
  static constexpr int kOffset = kSignedOffset, kMaxCode = 255;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
    unpack_code_book<kIq4Values, kOffset>(group, w.codes);
    w.scale[0] = halves(group, 4, 0);
    return w;
  }
};

// Words: 0 the low nibbles of eight steps' scales, whose upper two bits lie behind d; then, for each step, 4 of
// nibbles.
struct IQ4_XS : GgufConstants<GgufType::iq4_xs> {
  static constexpr int kOffset = kSignedOffset, kMaxCode = 255;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int step) {
    Unpacked w;
    unpack_code_book<kIq4Values, kOffset>(group + (1 + 4 * step) * 64, w.codes);
    const I32x16 low = (words(group, 0) >> (4 * step)) & broadcast_int(15);
    const I32x16 upper = load_unsigned(reinterpret_cast<const uint16_t*>(group + 33 * 64 + 32));
    const I32x16 scale = low | (((upper >> (2 * step)) & broadcast_int(3)) << 4);
    w.scale[0] = halves(group, 33, 0) * to_float(scale + broadcast_int(-32));
    return w;
  }
};

// A scale is 2 ^ (e - 128) of a byte e, made of two powers, since the smallest two are subnormal.
struct MXFP4 : GgufConstants<GgufType::mxfp4> {
  static constexpr int kOffset = 12, kMaxCode = 24;
  static PYBATCH_INLINE Unpacked unpack(const char* group, int) {
    Unpacked w;
    unpack_code_book<kFp4Values, kOffset>(group, w.codes);
    const I32x16 e = load_unsigned(reinterpret_cast<const uint8_t*>(group + 4 * 64)), first = e >> 1;
    auto power = [](I32x16 n) PYBATCH_INLINE_LAMBDA { return as_floats((n + broadcast_int(127 - 64)) << 23); };
    w.scale[0] = power(first) * power(first + (e & broadcast_int(1)));
    return w;
  }
};

// Calls f with a null pointer that stands for the type.
template <class F>
PYBATCH_INLINE void with_gguf_type(GgufType type, F&& f) {
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

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
