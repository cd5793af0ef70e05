// Sixteen 32-bit integer lanes beside vec.h's sixteen floats, and dot products of bytes in groups of four to a lane.
#pragma once

#include <type_traits>

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

PYBATCH_INLINE int32_t load_int(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return x;
}

#if defined(PYBATCH_ANY_AVX512)

struct I32x16 {
  __m512i v;
};
struct WideInts {
  I32x16 high, low;
};

PYBATCH_INLINE I32x16 broadcast_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
PYBATCH_INLINE I32x16 load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
PYBATCH_INLINE void store(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
PYBATCH_INLINE I32x16 operator+(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
PYBATCH_INLINE I32x16 operator&(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
PYBATCH_INLINE I32x16 operator|(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
PYBATCH_INLINE I32x16 operator^(I32x16 a, I32x16 b) { return {_mm512_xor_si512(a.v, b.v)}; }
PYBATCH_INLINE I32x16 operator<<(I32x16 a, int n) { return {_mm512_slli_epi32(a.v, static_cast<unsigned>(n))}; }
PYBATCH_INLINE I32x16 operator>>(I32x16 a, int n) { return {_mm512_srli_epi32(a.v, static_cast<unsigned>(n))}; }
PYBATCH_INLINE I32x16 signed_top_byte(I32x16 a) { return {_mm512_srai_epi32(a.v, 24)}; }
PYBATCH_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
PYBATCH_INLINE I32x16 to_int(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }  // nearest, ties to even
PYBATCH_INLINE I32x16 float_bits(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
PYBATCH_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
PYBATCH_INLINE WideInts multiply(I32x16 a, uint32_t b) {
  const __m512i factor = _mm512_set1_epi32(static_cast<int32_t>(b));
  const __m512i even = _mm512_mul_epu32(a.v, factor), odd = _mm512_mul_epu32(_mm512_srli_epi64(a.v, 32), factor);
  return {{_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd)},
          {_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32))}};
}
PYBATCH_INLINE int32_t reduce_max(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }
PYBATCH_INLINE int32_t reduce_add(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }
PYBATCH_INLINE void store_bytes(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

// VNNI's dot product takes its first operand as unsigned: kSignedOffset must have been added to signed bytes.
constexpr int kSignedOffset = 128;

// sum + the dot products of w, in each lane four bytes without a sign, with the four at x. In assembly, since GCC would
// load x by an instruction of its own.
PYBATCH_INLINE I32x16 add_dot(I32x16 sum, I32x16 w, const int8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(w.v), "m"(*reinterpret_cast<const int8_t (*)[4]>(x)));
  return sum;
}

// sum + the dot products of w[0..3], in each lane four bytes that are at most kMaxByte, with x[0..15].
template <int kMaxByte>
PYBATCH_INLINE I32x16 dot16(const I32x16* w, const int8_t* x, I32x16 sum) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) sum = add_dot(sum, w[i], x + 4 * i);
  return sum;
}

#elif defined(PYBATCH_ANY_AVX2)

struct I32x16 {
  __m256i lo, hi;
};
struct WideInts {
  I32x16 high, low;
};

PYBATCH_INLINE I32x16 broadcast_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
PYBATCH_INLINE I32x16 load_ints(const void* p) {
  auto* halves = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
PYBATCH_INLINE void store(int32_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
PYBATCH_INLINE I32x16 operator+(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
PYBATCH_INLINE I32x16 operator&(I32x16 a, I32x16 b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
PYBATCH_INLINE I32x16 operator|(I32x16 a, I32x16 b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
PYBATCH_INLINE I32x16 operator^(I32x16 a, I32x16 b) {
  return {_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
PYBATCH_INLINE I32x16 operator<<(I32x16 a, int n) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
PYBATCH_INLINE I32x16 operator>>(I32x16 a, int n) { return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
PYBATCH_INLINE I32x16 signed_top_byte(I32x16 a) { return {_mm256_srai_epi32(a.lo, 24), _mm256_srai_epi32(a.hi, 24)}; }
PYBATCH_INLINE F32x16 to_float(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
PYBATCH_INLINE I32x16 to_int(F32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
PYBATCH_INLINE I32x16 float_bits(F32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
PYBATCH_INLINE I32x16 max(I32x16 a, I32x16 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
PYBATCH_INLINE WideInts multiply(I32x16 a, uint32_t b) {
  const __m256i factor = _mm256_set1_epi32(static_cast<int32_t>(b));
  WideInts product;
  auto half = [&](__m256i x, __m256i& high, __m256i& low) PYBATCH_INLINE_LAMBDA {
    const __m256i even = _mm256_mul_epu32(x, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
  };
  half(a.lo, product.high.lo, product.low.lo);
  half(a.hi, product.high.hi, product.low.hi);
  return product;
}
PYBATCH_INLINE int32_t reduce_max(I32x16 a) {
  __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  __m128i v = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  v = _mm_max_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}
PYBATCH_INLINE int32_t reduce_add(I32x16 a) {
  __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  __m128i v = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}
PYBATCH_INLINE void store_bytes(int8_t* p, I32x16 a) {
  __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

#if defined(PYBATCH_ISA_AVX2_VNNI)

constexpr int kSignedOffset = 128;

template <int kMaxByte>
PYBATCH_INLINE I32x16 dot16(const I32x16* w, const int8_t* x, I32x16 sum) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i four = _mm256_set1_epi32(load_int(x + 4 * i));
    sum = {_mm256_dpbusd_avx_epi32(sum.lo, w[i].lo, four), _mm256_dpbusd_avx_epi32(sum.hi, w[i].hi, four)};
  }
  return sum;
}

#else

constexpr int kSignedOffset = 0;

// maddubs adds two products in 16 bits and saturates; as many of its results as cannot overflow are added there too.
// Signed bytes (kMaxByte 255) are multiplied as |w| * sign(w) x, of which two fit.
template <int kMaxByte>
PYBATCH_INLINE __m256i dot16_half(const __m256i (&w)[4], const __m256i (&x)[4], __m256i sum) {
  constexpr int kPerAdd = kMaxByte <= 31 ? 4 : kMaxByte <= 63 ? 2 : 1;
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i += kPerAdd) {
    __m256i pairs = kMaxByte == 255 ? _mm256_maddubs_epi16(_mm256_abs_epi8(w[i]), _mm256_sign_epi8(x[i], w[i]))
                                    : _mm256_maddubs_epi16(w[i], x[i]);
#pragma GCC unroll 4
    for (int j = 1; j < kPerAdd; ++j) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w[i + j], x[i + j]));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
  }
  return sum;
}
template <int kMaxByte>
PYBATCH_INLINE I32x16 dot16(const I32x16* w, const int8_t* x, I32x16 sum) {
  const __m256i all[4] = {_mm256_set1_epi32(load_int(x)), _mm256_set1_epi32(load_int(x + 4)),
                          _mm256_set1_epi32(load_int(x + 8)), _mm256_set1_epi32(load_int(x + 12))};
  return {dot16_half<kMaxByte>({w[0].lo, w[1].lo, w[2].lo, w[3].lo}, all, sum.lo),
          dot16_half<kMaxByte>({w[0].hi, w[1].hi, w[2].hi, w[3].hi}, all, sum.hi)};
}

#endif

#elif defined(PYBATCH_ANY_NEON)

struct I32x16 {
  uint32x4_t part[4];
};
struct WideInts {
  I32x16 high, low;
};

#define PYBATCH_PARTWISE(expression)                                 \
  auto of = [&](int i) PYBATCH_INLINE_LAMBDA { return expression; }; \
  return {                                                           \
    {                                                                \
      of(0), of(1), of(2), of(3)                                     \
    }                                                                \
  }

PYBATCH_INLINE int32x4_t as_signed(uint32x4_t a) { return vreinterpretq_s32_u32(a); }
PYBATCH_INLINE uint32x4_t as_unsigned(int32x4_t a) { return vreinterpretq_u32_s32(a); }
PYBATCH_INLINE int8x16_t as_bytes(uint32x4_t a) { return vreinterpretq_s8_u32(a); }

PYBATCH_INLINE I32x16 broadcast_int(int32_t x) {
  const uint32x4_t all = vdupq_n_u32(static_cast<uint32_t>(x));
  return {{all, all, all, all}};
}
PYBATCH_INLINE I32x16 load_ints(const void* p) {
  PYBATCH_PARTWISE(vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p) + 16 * i)));
}
PYBATCH_INLINE void store(int32_t* p, I32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, as_signed(a.part[i]));
}
PYBATCH_INLINE I32x16 operator+(I32x16 a, I32x16 b) { PYBATCH_PARTWISE(vaddq_u32(a.part[i], b.part[i])); }
PYBATCH_INLINE I32x16 operator&(I32x16 a, I32x16 b) { PYBATCH_PARTWISE(vandq_u32(a.part[i], b.part[i])); }
PYBATCH_INLINE I32x16 operator|(I32x16 a, I32x16 b) { PYBATCH_PARTWISE(vorrq_u32(a.part[i], b.part[i])); }
PYBATCH_INLINE I32x16 operator^(I32x16 a, I32x16 b) { PYBATCH_PARTWISE(veorq_u32(a.part[i], b.part[i])); }
// The compiler's operators, whose counts need not be constants of the language to be constants of the instruction.
PYBATCH_INLINE I32x16 operator<<(I32x16 a, int n) { PYBATCH_PARTWISE(a.part[i] << n); }
PYBATCH_INLINE I32x16 operator>>(I32x16 a, int n) { PYBATCH_PARTWISE(a.part[i] >> n); }
PYBATCH_INLINE I32x16 signed_top_byte(I32x16 a) {
  PYBATCH_PARTWISE(as_unsigned(vshrq_n_s32(as_signed(a.part[i]), 24)));
}
PYBATCH_INLINE F32x16 to_float(I32x16 a) { PYBATCH_PARTWISE(vcvtq_f32_s32(as_signed(a.part[i]))); }
PYBATCH_INLINE I32x16 to_int(F32x16 a) { PYBATCH_PARTWISE(as_unsigned(vcvtnq_s32_f32(a.part[i]))); }
PYBATCH_INLINE I32x16 float_bits(F32x16 a) { PYBATCH_PARTWISE(vreinterpretq_u32_f32(a.part[i])); }
PYBATCH_INLINE I32x16 max(I32x16 a, I32x16 b) {
  PYBATCH_PARTWISE(as_unsigned(vmaxq_s32(as_signed(a.part[i]), as_signed(b.part[i]))));
}
PYBATCH_INLINE WideInts multiply(I32x16 a, uint32_t b) {
  WideInts product;
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t factor = vdupq_n_u32(b);
    const uint32x4_t lo = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a.part[i]), vget_low_u32(factor)));
    const uint32x4_t hi = vreinterpretq_u32_u64(vmull_high_u32(a.part[i], factor));
    product.high.part[i] = vuzp2q_u32(lo, hi);
    product.low.part[i] = vuzp1q_u32(lo, hi);
  }
  return product;
}
PYBATCH_INLINE int32_t reduce_max(I32x16 a) {
  const int32x4_t lo = vmaxq_s32(as_signed(a.part[0]), as_signed(a.part[1]));
  return vmaxvq_s32(vmaxq_s32(lo, vmaxq_s32(as_signed(a.part[2]), as_signed(a.part[3]))));
}
PYBATCH_INLINE int32_t reduce_add(I32x16 a) {
  const uint32x4_t sum = vaddq_u32(vaddq_u32(a.part[0], a.part[1]), vaddq_u32(a.part[2], a.part[3]));
  return static_cast<int32_t>(vaddvq_u32(sum));
}
// The lower halves of 16 lanes.
PYBATCH_INLINE uint16x8_t lower_halves(uint32x4_t a, uint32x4_t b) {
  return vuzp1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
}
PYBATCH_INLINE int8x16_t lowest_bytes(I32x16 a) {
  const uint16x8_t lo = lower_halves(a.part[0], a.part[1]), hi = lower_halves(a.part[2], a.part[3]);
  return vreinterpretq_s8_u8(vuzp1q_u8(vreinterpretq_u8_u16(lo), vreinterpretq_u8_u16(hi)));
}
PYBATCH_INLINE void store_bytes(int8_t* p, I32x16 a) { vst1q_s8(p, lowest_bytes(a)); }

constexpr int kSignedOffset = 0;

#if defined(PYBATCH_ISA_NEON)

// Products of bytes are added in 16 bits as long as they cannot overflow, -128 * -127 twice, then in pairs in 32.
template <int kMaxByte>
PYBATCH_INLINE I32x16 dot16(const I32x16* w, const int8_t* x, I32x16 sum) {
  constexpr int kPerAdd = kMaxByte <= 63 ? 4 : 2;
  int8x16_t all[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) all[i] = vreinterpretq_s8_s32(vdupq_n_s32(load_int(x + 4 * i)));
#pragma GCC unroll 4
  for (int part = 0; part < 4; ++part) {
    int32x4_t lo = vdupq_n_s32(0), hi = lo;  // of two columns each, in two halves
#pragma GCC unroll 4
    for (int i = 0; i < 4; i += kPerAdd) {
      const int8x16_t first = as_bytes(w[i].part[part]);
      int16x8_t products_lo = vmull_s8(vget_low_s8(first), vget_low_s8(all[i]));
      int16x8_t products_hi = vmull_high_s8(first, all[i]);
#pragma GCC unroll 4
      for (int j = i + 1; j < i + kPerAdd; ++j) {
        const int8x16_t next = as_bytes(w[j].part[part]);
        products_lo = vmlal_s8(products_lo, vget_low_s8(next), vget_low_s8(all[j]));
        products_hi = vmlal_high_s8(products_hi, next, all[j]);
      }
      lo = vpadalq_s16(lo, products_lo);
      hi = vpadalq_s16(hi, products_hi);
    }
    sum.part[part] = vaddq_u32(sum.part[part], as_unsigned(vpaddq_s32(lo, hi)));
  }
  return sum;
}

#else

// Codes without a sign are less than 128.
template <int kMaxByte>
PYBATCH_INLINE I32x16 dot16(const I32x16* w, const int8_t* x, I32x16 sum) {
  const int8x16_t four = vld1q_s8(x);
  auto add = [&](int32x4_t dot, int part) PYBATCH_INLINE_LAMBDA {
    dot = vdotq_laneq_s32(dot, as_bytes(w[0].part[part]), four, 0);
    dot = vdotq_laneq_s32(dot, as_bytes(w[1].part[part]), four, 1);
    dot = vdotq_laneq_s32(dot, as_bytes(w[2].part[part]), four, 2);
    return as_unsigned(vdotq_laneq_s32(dot, as_bytes(w[3].part[part]), four, 3));
  };
  PYBATCH_PARTWISE(add(as_signed(sum.part[i]), i));
}

#endif
#undef PYBATCH_PARTWISE

#else  // portable

struct I32x16 {
  uint32_t v[kLanes];
};
struct WideInts {
  I32x16 high, low;
};

#define PYBATCH_LANEWISE(expression)                    \
  I32x16 r;                                             \
  for (int i = 0; i < kLanes; ++i) r.v[i] = expression; \
  return r

PYBATCH_INLINE I32x16 broadcast_int(int32_t x) { PYBATCH_LANEWISE(static_cast<uint32_t>(x)); }
PYBATCH_INLINE I32x16 load_ints(const void* p) {
  I32x16 r;
  std::memcpy(r.v, p, sizeof(r.v));
  return r;
}
PYBATCH_INLINE void store(int32_t* p, I32x16 a) { std::memcpy(p, a.v, sizeof(a.v)); }
PYBATCH_INLINE I32x16 operator+(I32x16 a, I32x16 b) { PYBATCH_LANEWISE(a.v[i] + b.v[i]); }
PYBATCH_INLINE I32x16 operator&(I32x16 a, I32x16 b) { PYBATCH_LANEWISE(a.v[i] & b.v[i]); }
PYBATCH_INLINE I32x16 operator|(I32x16 a, I32x16 b) { PYBATCH_LANEWISE(a.v[i] | b.v[i]); }
PYBATCH_INLINE I32x16 operator^(I32x16 a, I32x16 b) { PYBATCH_LANEWISE(a.v[i] ^ b.v[i]); }
PYBATCH_INLINE I32x16 operator<<(I32x16 a, int n) { PYBATCH_LANEWISE(a.v[i] << n); }
PYBATCH_INLINE I32x16 operator>>(I32x16 a, int n) { PYBATCH_LANEWISE(a.v[i] >> n); }
PYBATCH_INLINE I32x16 signed_top_byte(I32x16 a) {
  PYBATCH_LANEWISE(static_cast<uint32_t>(static_cast<int32_t>(a.v[i]) >> 24));
}
PYBATCH_INLINE F32x16 to_float(I32x16 a) {
  F32x16 r;
  for (int i = 0; i < kLanes; ++i) r.part[i / 4][i % 4] = static_cast<float>(static_cast<int32_t>(a.v[i]));
  return r;
}
PYBATCH_INLINE I32x16 to_int(F32x16 a) {
  PYBATCH_LANEWISE(static_cast<uint32_t>(static_cast<int32_t>(round_half_even(a[i]))));
}
PYBATCH_INLINE I32x16 float_bits(F32x16 a) { PYBATCH_LANEWISE(as_bits(a[i])); }
PYBATCH_INLINE I32x16 max(I32x16 a, I32x16 b) {
  PYBATCH_LANEWISE(static_cast<int32_t>(a.v[i]) > static_cast<int32_t>(b.v[i]) ? a.v[i] : b.v[i]);
}
#undef PYBATCH_LANEWISE
PYBATCH_INLINE WideInts multiply(I32x16 a, uint32_t b) {
  WideInts product;
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t wide = uint64_t{a.v[i]} * b;
    product.high.v[i] = static_cast<uint32_t>(wide >> 32);
    product.low.v[i] = static_cast<uint32_t>(wide);
  }
  return product;
}
PYBATCH_INLINE int32_t reduce_max(I32x16 a) {
  int32_t most = static_cast<int32_t>(a.v[0]);
  for (uint32_t x : a.v) most = static_cast<int32_t>(x) > most ? static_cast<int32_t>(x) : most;
  return most;
}
PYBATCH_INLINE int32_t reduce_add(I32x16 a) {
  uint32_t sum = 0;
  for (uint32_t x : a.v) sum += x;
  return static_cast<int32_t>(sum);
}
PYBATCH_INLINE void store_bytes(int8_t* p, I32x16 a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}

constexpr int kSignedOffset = 0;

template <int kMaxByte>
PYBATCH_INLINE I32x16 dot16(const I32x16* w, const int8_t* x, I32x16 sum) {
  using Byte = std::conditional_t<kMaxByte == 255, int8_t, uint8_t>;
  for (int group = 0; group < 4; ++group) {
    Byte bytes[4 * kLanes];
    std::memcpy(bytes, w[group].v, sizeof(bytes));
    for (int i = 0; i < kLanes; ++i) {
      int32_t dot = 0;
      for (int j = 0; j < 4; ++j) dot += bytes[4 * i + j] * x[4 * group + j];
      sum.v[i] += static_cast<uint32_t>(dot);
    }
  }
  return sum;
}

#endif

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
