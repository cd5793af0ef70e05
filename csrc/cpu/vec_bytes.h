// Bytes of sixteen 32-bit lanes: spread, looked up and widened.
#pragma once

#include "cpu/vec_int.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

// spread_byte(a, b): byte b of each lane in all its four bytes.
// look_up(book, a): what the book has for each byte, which is less than 16.
struct alignas(16) CodeBook {
  uint8_t bytes[16];
};

#if defined(PYBATCH_ANY_AVX512)

PYBATCH_INLINE F32x16 as_floats(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
PYBATCH_INLINE I32x16 load_unsigned(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
PYBATCH_INLINE I32x16 load_unsigned(const uint16_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
PYBATCH_INLINE I32x16 spread_byte(I32x16 a, int b) {
  const __m512i first = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  return {_mm512_shuffle_epi8(a.v, _mm512_add_epi8(first, _mm512_set1_epi8(static_cast<char>(b))))};
}
PYBATCH_INLINE I32x16 look_up(const CodeBook& book, I32x16 a) {
  const __m128i all = _mm_load_si128(reinterpret_cast<const __m128i*>(book.bytes));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(all), a.v)};
}

#elif defined(PYBATCH_ANY_AVX2)

PYBATCH_INLINE F32x16 as_floats(I32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
PYBATCH_INLINE I32x16 load_unsigned(const uint8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(all), _mm256_cvtepu8_epi32(_mm_srli_si128(all, 8))};
}
PYBATCH_INLINE I32x16 load_unsigned(const uint16_t* p) {
  auto* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(halves)), _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1))};
}
PYBATCH_INLINE I32x16 spread_byte(I32x16 a, int b) {
  const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
  const __m256i from = _mm256_add_epi8(first, _mm256_set1_epi8(static_cast<char>(b)));
  return {_mm256_shuffle_epi8(a.lo, from), _mm256_shuffle_epi8(a.hi, from)};
}
PYBATCH_INLINE I32x16 look_up(const CodeBook& book, I32x16 a) {
  const __m256i all = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(book.bytes)));
  return {_mm256_shuffle_epi8(all, a.lo), _mm256_shuffle_epi8(all, a.hi)};
}

#elif defined(PYBATCH_ANY_NEON)

#define PYBATCH_PARTWISE(expression)                                 \
  auto of = [&](int i) PYBATCH_INLINE_LAMBDA { return expression; }; \
  return {                                                           \
    {                                                                \
      of(0), of(1), of(2), of(3)                                     \
    }                                                                \
  }

PYBATCH_INLINE F32x16 as_floats(I32x16 a) { PYBATCH_PARTWISE(vreinterpretq_f32_u32(a.part[i])); }
PYBATCH_INLINE I32x16 load_unsigned(const uint16_t* p) { PYBATCH_PARTWISE(vmovl_u16(vld1_u16(p + 4 * i))); }
PYBATCH_INLINE I32x16 load_unsigned(const uint8_t* p) {
  const uint8x16_t all = vld1q_u8(p);
  const uint16x8_t lo = vmovl_u8(vget_low_u8(all)), hi = vmovl_high_u8(all);
  return {{vmovl_u16(vget_low_u16(lo)), vmovl_high_u16(lo), vmovl_u16(vget_low_u16(hi)), vmovl_high_u16(hi)}};
}
PYBATCH_INLINE I32x16 look_up(const CodeBook& book, I32x16 a) {
  const uint8x16_t all = vld1q_u8(book.bytes);
  PYBATCH_PARTWISE(vreinterpretq_u32_u8(vqtbl1q_u8(all, vreinterpretq_u8_u32(a.part[i]))));
}
PYBATCH_INLINE I32x16 spread_byte(I32x16 a, int b) {
  const uint8x16_t from = vaddq_u8(vreinterpretq_u8_u32(uint32x4_t{0, 0x04040404, 0x08080808, 0x0c0c0c0c}),
                                   vdupq_n_u8(static_cast<uint8_t>(b)));
  PYBATCH_PARTWISE(vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(a.part[i]), from)));
}
#undef PYBATCH_PARTWISE

#else  // portable

#define PYBATCH_LANEWISE(expression)                    \
  I32x16 r;                                             \
  for (int i = 0; i < kLanes; ++i) r.v[i] = expression; \
  return r

PYBATCH_INLINE F32x16 as_floats(I32x16 a) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.part[i / 4][i % 4] = as_float(a.v[i]);
  return r;
}
PYBATCH_INLINE I32x16 load_unsigned(const uint8_t* p) { PYBATCH_LANEWISE(p[i]); }
PYBATCH_INLINE I32x16 load_unsigned(const uint16_t* p) {
  uint16_t all[kLanes];
  std::memcpy(all, p, sizeof(all));
  PYBATCH_LANEWISE(all[i]);
}
PYBATCH_INLINE I32x16 spread_byte(I32x16 a, int b) { PYBATCH_LANEWISE(((a.v[i] >> 8 * b) & 0xff) * 0x01010101u); }
PYBATCH_INLINE I32x16 look_up(const CodeBook& book, I32x16 a) {
  auto word = [&](uint32_t codes) {
    uint32_t found = 0;
    for (int shift = 0; shift < 32; shift += 8) found |= uint32_t{book.bytes[(codes >> shift) & 15]} << shift;
    return found;
  };
  PYBATCH_LANEWISE(word(a.v[i]));
}
#undef PYBATCH_LANEWISE

#endif

// Byte b of each lane, float8_e4m3fn (its NaN as 480): the exponent moved under that of a float is 120 too low.
PYBATCH_INLINE F32x16 float8(I32x16 a, int b) {
  const I32x16 top = a << (24 - 8 * b);
  const I32x16 sign = top & broadcast_int(INT32_MIN), rest = (top & broadcast_int(0x7f000000)) >> 4;
  return as_floats(sign | rest) * broadcast(0x1p120f);
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
