// Sixteen fp32 lanes, the one vector of every kernel: a zmm register under AVX-512, two ymm under AVX2, four registers
// under NEON, plain arrays that the compiler vectorises elsewhere. The lanes mean the same everywhere, so AVX2, AVX-512
// and NEON give the same bits.
// Multiplies and adds are fused only where fma() says so (the build turns contraction off).
//
// Included by sources that are compiled once per instruction set: everything lives in a namespace of that set's name,
// and nothing here may instantiate a std:: template that another set's objects could pick up.
#pragma once

#include <cstdint>
#include <cstring>

#include "pybatch/types.h"

#if defined(PYBATCH_ISA_AVX512) || defined(PYBATCH_ISA_AMX)
#define PYBATCH_ANY_AVX512
#elif defined(PYBATCH_ISA_AVX2) || defined(PYBATCH_ISA_AVX2_VNNI)
#define PYBATCH_ANY_AVX2
#endif
#if defined(PYBATCH_ANY_AVX512) || defined(PYBATCH_ANY_AVX2)
#include <immintrin.h>
#elif defined(PYBATCH_ISA_NEON) || defined(PYBATCH_ISA_NEON_DOTPROD) || defined(PYBATCH_ISA_NEON_I8MM)
#define PYBATCH_ANY_NEON
#include <arm_neon.h>
#endif

#if defined(PYBATCH_ISA_AMX)
#define PYBATCH_ISA_NAMESPACE amx
#elif defined(PYBATCH_ISA_AVX512)
#define PYBATCH_ISA_NAMESPACE avx512
#elif defined(PYBATCH_ISA_AVX2)
#define PYBATCH_ISA_NAMESPACE avx2
#elif defined(PYBATCH_ISA_AVX2_VNNI)
#define PYBATCH_ISA_NAMESPACE avx2_vnni
#elif defined(PYBATCH_ISA_NEON)
#define PYBATCH_ISA_NAMESPACE neon
#elif defined(PYBATCH_ISA_NEON_DOTPROD)
#define PYBATCH_ISA_NAMESPACE neon_dotprod
#elif defined(PYBATCH_ISA_NEON_I8MM)
#define PYBATCH_ISA_NAMESPACE neon_i8mm
#else
#define PYBATCH_ISA_NAMESPACE portable
#endif

#define PYBATCH_INLINE inline __attribute__((always_inline))
#define PYBATCH_INLINE_LAMBDA __attribute__((always_inline))

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

// 16-bit floats as stored in memory.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

constexpr int kLanes = 16;
// 1.5 * 2^23 + 127. Added to x, it leaves the nearest integer n (of two, the odd one) and n + 127 in the lowest bits.
constexpr float kRounder = 12583039.0f;
using F32x4 = float __attribute__((vector_size(16)));  // GCC's and Clang's vectors: SSE, NEON or others

PYBATCH_INLINE float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
PYBATCH_INLINE uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

#if defined(PYBATCH_ANY_AVX512)

struct F32x16 {
  __m512 v;
};

PYBATCH_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }

PYBATCH_INLINE F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
PYBATCH_INLINE F32x16 zeros() { return {_mm512_setzero_ps()}; }
PYBATCH_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PYBATCH_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
PYBATCH_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
PYBATCH_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
PYBATCH_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
PYBATCH_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
PYBATCH_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
PYBATCH_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
// Nearest integer, ties to even.
PYBATCH_INLINE F32x16 round(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n of a = kRounder + n, for n in [-126, 127].
PYBATCH_INLINE F32x16 power_of_two(F32x16 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 23))};
}

PYBATCH_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
PYBATCH_INLINE F32x16 load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
PYBATCH_INLINE F32x16 load(const bf16* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
PYBATCH_INLINE F32x16 load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// The first (odd = 0) or second (odd = 1) element of each of 16 pairs.
PYBATCH_INLINE F32x16 load_of_pairs(const bf16* p, int odd) {
  __m512i pairs = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(odd != 0 ? _mm512_and_si512(pairs, _mm512_set1_epi32(-0x10000))
                                       : _mm512_slli_epi32(pairs, 16))};
}
PYBATCH_INLINE F32x16 load_of_pairs(const f16* p, int odd) {
  __m512i pairs = _mm512_loadu_si512(p);
  return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(odd != 0 ? _mm512_srli_epi32(pairs, 16) : pairs))};
}

// Lanes 0-7 from lo, 8-15 from hi.
PYBATCH_INLINE F32x16 load_halves(const float* lo, const float* hi) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(lo)), _mm256_loadu_ps(hi), 1)};
}
PYBATCH_INLINE F32x16 load_halves(const f16* lo, const f16* hi) {
  __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lo));
  __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(hi));
  return {_mm512_cvtph_ps(_mm256_set_m128i(b, a))};
}
PYBATCH_INLINE F32x16 load_halves(const bf16* lo, const bf16* hi) {
  __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lo));
  __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(hi));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_set_m128i(b, a)), 16))};
}
PYBATCH_INLINE F32x16 load_halves(const int8_t* lo, const int8_t* hi) {
  __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(lo));
  __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(hi));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi64(a, b)))};
}

PYBATCH_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
PYBATCH_INLINE void store(f16* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
PYBATCH_INLINE void store(bf16* p, F32x16 a) {
  __m512i bits = _mm512_castps_si512(a.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

PYBATCH_INLINE F32x16 select_first(int64_t n, F32x16 a, F32x16 b) {  // lanes below n from a, the others from b
  return {_mm512_mask_mov_ps(b.v, first_lanes(n), a.v)};
}

PYBATCH_INLINE F32x16 select_lanes(uint32_t lanes, F32x16 a,
                                   F32x16 b) {  // lane i from a where bit i is set, else from b
  return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>(lanes), a.v)};
}

PYBATCH_INLINE F32x16 zero_where_below(F32x16 x, F32x16 limit, F32x16 a) {  // 0 in lanes where x < limit
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_NLT_UQ), a.v)};
}

PYBATCH_INLINE uint32_t lanes_at_least(F32x16 x, F32x16 limit) {  // bit i: lane i of x >= that of limit
  return _mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ);
}

#elif defined(PYBATCH_ANY_AVX2)

struct F32x16 {
  __m256 lo, hi;
};

PYBATCH_INLINE F32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PYBATCH_INLINE F32x16 zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
PYBATCH_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
PYBATCH_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
PYBATCH_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
PYBATCH_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
PYBATCH_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
PYBATCH_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
PYBATCH_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
PYBATCH_INLINE F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
PYBATCH_INLINE F32x16 round(F32x16 a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
PYBATCH_INLINE F32x16 power_of_two(F32x16 a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.lo), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.hi), 23))};
}

PYBATCH_INLINE __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
PYBATCH_INLINE __m256 load8(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PYBATCH_INLINE __m256 load8(const bf16* p) {
  __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
PYBATCH_INLINE __m256 load8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
template <class T>
PYBATCH_INLINE F32x16 load_halves(const T* lo, const T* hi) {
  return {load8(lo), load8(hi)};
}
template <class T>
PYBATCH_INLINE F32x16 load(const T* p) {
  return load_halves(p, p + 8);
}

PYBATCH_INLINE __m256 load8_of_pairs(const bf16* p, int odd) {
  __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_castsi256_ps(odd != 0 ? _mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000))
                                      : _mm256_slli_epi32(pairs, 16));
}
PYBATCH_INLINE __m256 load8_of_pairs(const f16* p, int odd) {
  __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  // in each half
                                         0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  pairs = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, apart), 0xd8);
  return _mm256_cvtph_ps(odd != 0 ? _mm256_extracti128_si256(pairs, 1) : _mm256_castsi256_si128(pairs));
}
template <class T>
PYBATCH_INLINE F32x16 load_of_pairs(const T* p, int odd) {
  return {load8_of_pairs(p, odd), load8_of_pairs(p + 16, odd)};
}

PYBATCH_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
PYBATCH_INLINE void store(f16* p, F32x16 a) {
  auto* q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
PYBATCH_INLINE __m256i to_bf16_bits(__m256 a) {
  __m256i bits = _mm256_castps_si256(a);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
}
PYBATCH_INLINE void store(bf16* p, F32x16 a) {
  __m256i packed = _mm256_packus_epi32(to_bf16_bits(a.lo), to_bf16_bits(a.hi));  // lanes 0-3, 8-11, 4-7, 12-15
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

PYBATCH_INLINE F32x16 select_first(int64_t n, F32x16 a, F32x16 b) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  __m256i hi = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n) - 8), lane);
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(lo)), _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(hi))};
}

PYBATCH_INLINE F32x16 select_lanes(uint32_t lanes, F32x16 a, F32x16 b) {
  auto select = [](uint32_t set, __m256 x, __m256 y) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i mine = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(set)), bit);
    return _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(mine, bit)));
  };
  return {select(lanes, a.lo, b.lo), select(lanes >> 8, a.hi, b.hi)};
}

PYBATCH_INLINE F32x16 zero_where_below(F32x16 x, F32x16 limit, F32x16 a) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_NLT_UQ), a.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_NLT_UQ), a.hi)};
}

PYBATCH_INLINE uint32_t lanes_at_least(F32x16 x, F32x16 limit) {
  auto bits = [](__m256 mask) { return static_cast<uint32_t>(_mm256_movemask_ps(mask)); };
  return bits(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ)) | bits(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ)) << 8;
}

#elif defined(PYBATCH_ANY_NEON)

struct F32x16 {
  float32x4_t part[4];
};

#define PYBATCH_PARTWISE(expression)                                 \
  auto of = [&](int i) PYBATCH_INLINE_LAMBDA { return expression; }; \
  return {                                                           \
    {                                                                \
      of(0), of(1), of(2), of(3)                                     \
    }                                                                \
  }

PYBATCH_INLINE F32x16 broadcast(float x) {
  const float32x4_t all = vdupq_n_f32(x);
  return {{all, all, all, all}};
}
PYBATCH_INLINE F32x16 zeros() { return broadcast(0.0f); }
PYBATCH_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  PYBATCH_PARTWISE(vfmaq_f32(c.part[i], a.part[i], b.part[i]));
}
PYBATCH_INLINE F32x16 operator+(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(vaddq_f32(a.part[i], b.part[i])); }
PYBATCH_INLINE F32x16 operator-(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(vsubq_f32(a.part[i], b.part[i])); }
PYBATCH_INLINE F32x16 operator*(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(vmulq_f32(a.part[i], b.part[i])); }
PYBATCH_INLINE F32x16 operator/(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(vdivq_f32(a.part[i], b.part[i])); }
// fmax and fmin treat NaN and zeros otherwise than the others' instructions, which give b unless a is the larger.
PYBATCH_INLINE F32x16 max(F32x16 a, F32x16 b) {
  PYBATCH_PARTWISE(vbslq_f32(vcgtq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]));
}
PYBATCH_INLINE F32x16 min(F32x16 a, F32x16 b) {
  PYBATCH_PARTWISE(vbslq_f32(vcltq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]));
}
PYBATCH_INLINE F32x16 abs(F32x16 a) { PYBATCH_PARTWISE(vabsq_f32(a.part[i])); }
PYBATCH_INLINE F32x16 round(F32x16 a) { PYBATCH_PARTWISE(vrndnq_f32(a.part[i])); }
PYBATCH_INLINE F32x16 power_of_two(F32x16 a) {
  PYBATCH_PARTWISE(vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a.part[i]), 23)));
}

PYBATCH_INLINE float32x4_t load4(const float* p) { return vld1q_f32(p); }
PYBATCH_INLINE float32x4_t load4(const f16* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}
PYBATCH_INLINE float32x4_t load4(const bf16* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)), 16));
}
template <class T>
PYBATCH_INLINE F32x16 load_halves(const T* lo, const T* hi) {
  PYBATCH_PARTWISE(load4((i < 2 ? lo : hi) + i % 2 * 4));
}
PYBATCH_INLINE F32x16 load_halves(const int8_t* lo, const int8_t* hi) {
  const int16x8_t wide[2] = {vmovl_s8(vld1_s8(lo)), vmovl_s8(vld1_s8(hi))};
  PYBATCH_PARTWISE(vcvtq_f32_s32(i % 2 == 0 ? vmovl_s16(vget_low_s16(wide[i / 2])) : vmovl_high_s16(wide[i / 2])));
}
template <class T>
PYBATCH_INLINE F32x16 load(const T* p) {
  return load_halves(p, p + 8);
}

PYBATCH_INLINE float32x4_t load4_of_pairs(const bf16* p, int odd) {
  const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
  return vreinterpretq_f32_u32(odd != 0 ? vandq_u32(pairs, vdupq_n_u32(0xffff0000u)) : vshlq_n_u32(pairs, 16));
}
PYBATCH_INLINE float32x4_t load4_of_pairs(const f16* p, int odd) {
  const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
  return vcvt_f32_f16(vreinterpret_f16_u16(odd != 0 ? vshrn_n_u32(pairs, 16) : vmovn_u32(pairs)));
}
template <class T>
PYBATCH_INLINE F32x16 load_of_pairs(const T* p, int odd) {
  PYBATCH_PARTWISE(load4_of_pairs(p + 8 * i, odd));
}

PYBATCH_INLINE void store4(float* p, float32x4_t a) { vst1q_f32(p, a); }
PYBATCH_INLINE void store4(f16* p, float32x4_t a) {
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(a)));
}
PYBATCH_INLINE void store4(bf16* p, float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint16x4_t rounded = vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
  const uint16x4_t number = vmovn_u32(vceqq_f32(a, a));
  vst1_u16(reinterpret_cast<uint16_t*>(p), vbsl_u16(number, rounded, vdup_n_u16(0x7fc0)));
}
template <class T>
PYBATCH_INLINE void store(T* p, F32x16 a) {
  for (int i = 0; i < 4; ++i) store4(p + 4 * i, a.part[i]);
}

PYBATCH_INLINE uint32x4_t numbers_from(uint32_t first) {
  const uint32x4_t lanes = {0, 1, 2, 3};
  return vaddq_u32(lanes, vdupq_n_u32(first));
}
PYBATCH_INLINE F32x16 select_first(int64_t n, F32x16 a, F32x16 b) {
  const uint32x4_t count = vdupq_n_u32(static_cast<uint32_t>(n));
  PYBATCH_PARTWISE(vbslq_f32(vcgtq_u32(count, numbers_from(static_cast<uint32_t>(4 * i))), a.part[i], b.part[i]));
}
PYBATCH_INLINE F32x16 select_lanes(uint32_t lanes, F32x16 a, F32x16 b) {
  const uint32x4_t bit = {1, 2, 4, 8};
  PYBATCH_PARTWISE(vbslq_f32(vtstq_u32(vdupq_n_u32(lanes >> (4 * i)), bit), a.part[i], b.part[i]));
}
PYBATCH_INLINE F32x16 zero_where_below(F32x16 x, F32x16 limit, F32x16 a) {
  PYBATCH_PARTWISE(
      vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a.part[i]), vcltq_f32(x.part[i], limit.part[i]))));
}
PYBATCH_INLINE uint32_t lanes_at_least(F32x16 x, F32x16 limit) {
  uint32x4_t bits = vdupq_n_u32(0);
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bit = {1u << (4 * i), 2u << (4 * i), 4u << (4 * i), 8u << (4 * i)};
    bits = vorrq_u32(bits, vandq_u32(vcgeq_f32(x.part[i], limit.part[i]), bit));
  }
  return vaddvq_u32(bits);
}

#else  // portable

struct F32x16 {
  F32x4 part[4];
  PYBATCH_INLINE float operator[](int i) const { return part[i / 4][i % 4]; }
};

#define PYBATCH_LANEWISE(expression)                                    \
  F32x16 r;                                                             \
  for (int i = 0; i < kLanes; ++i) r.part[i / 4][i % 4] = (expression); \
  return r
#define PYBATCH_PARTWISE(expression)                  \
  F32x16 r;                                           \
  for (int i = 0; i < 4; ++i) r.part[i] = expression; \
  return r

PYBATCH_INLINE float to_float(float x) { return x; }
PYBATCH_INLINE float to_float(int8_t x) { return static_cast<float>(x); }
PYBATCH_INLINE float to_float(bf16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }
PYBATCH_INLINE float to_float(f16 x) {
  uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00u) return as_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Shift the fraction into place, then correct the exponent by a multiplication by 2^112, exact for subnormals too.
  return as_float(sign | as_bits(as_float(rest << 13) * as_float(0x77800000u)));
}
PYBATCH_INLINE void from_float(float* p, float x) { *p = x; }
PYBATCH_INLINE void from_float(bf16* p, float x) {
  uint32_t bits = as_bits(x);
  p->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
PYBATCH_INLINE void from_float(f16* p, float x) {
  uint32_t bits = as_bits(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // rounds past the largest half
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: adding 0.5 puts the rounding where the fraction ends
    half = as_bits(as_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | half);
}
PYBATCH_INLINE float round_half_even(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23
  return (x < 4194304.0f && x > -4194304.0f) ? (x + magic) - magic : x;
}

PYBATCH_INLINE F32x16 broadcast(float x) { PYBATCH_PARTWISE((F32x4{x, x, x, x})); }
PYBATCH_INLINE F32x16 zeros() { return broadcast(0.0f); }
#if defined(__FP_FAST_FMAF)
PYBATCH_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { PYBATCH_LANEWISE(__builtin_fmaf(a[i], b[i], c[i])); }
#else  // no fused instruction: two roundings, the same two everywhere
PYBATCH_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { PYBATCH_PARTWISE(a.part[i] * b.part[i] + c.part[i]); }
#endif
PYBATCH_INLINE F32x16 operator+(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(a.part[i] + b.part[i]); }
PYBATCH_INLINE F32x16 operator-(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(a.part[i] - b.part[i]); }
PYBATCH_INLINE F32x16 operator*(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(a.part[i] * b.part[i]); }
PYBATCH_INLINE F32x16 operator/(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(a.part[i] / b.part[i]); }
PYBATCH_INLINE F32x16 max(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(a.part[i] > b.part[i] ? a.part[i] : b.part[i]); }
PYBATCH_INLINE F32x16 min(F32x16 a, F32x16 b) { PYBATCH_PARTWISE(a.part[i] < b.part[i] ? a.part[i] : b.part[i]); }
PYBATCH_INLINE F32x16 abs(F32x16 a) { PYBATCH_LANEWISE(__builtin_fabsf(a[i])); }
PYBATCH_INLINE F32x16 round(F32x16 a) { PYBATCH_LANEWISE(round_half_even(a[i])); }
PYBATCH_INLINE F32x16 power_of_two(F32x16 a) { PYBATCH_LANEWISE(as_float(as_bits(a[i]) << 23)); }
PYBATCH_INLINE F32x16 load(const float* p) {
  F32x16 r;
  std::memcpy(&r, p, sizeof(r));
  return r;
}
// Not inlined, like the store below: sixteen scalar conversions are long, and used in many places.
template <class T>
__attribute__((noinline)) F32x16 load(const T* p) {
  PYBATCH_LANEWISE(to_float(p[i]));
}
template <class T>
__attribute__((noinline)) F32x16 load_of_pairs(const T* p, int odd) {
  PYBATCH_LANEWISE(to_float(p[2 * i + odd]));
}
template <class T>
PYBATCH_INLINE F32x16 load_halves(const T* lo, const T* hi) {
  PYBATCH_LANEWISE(to_float(i < 8 ? lo[i] : hi[i - 8]));
}
PYBATCH_INLINE void store(float* p, F32x16 a) { std::memcpy(p, &a, sizeof(a)); }
template <class T>
__attribute__((noinline)) void store(T* p, F32x16 a) {
  for (int i = 0; i < kLanes; ++i) from_float(p + i, a[i]);
}
PYBATCH_INLINE F32x16 select_first(int64_t n, F32x16 a, F32x16 b) { PYBATCH_LANEWISE(i < n ? a[i] : b[i]); }
PYBATCH_INLINE F32x16 select_lanes(uint32_t lanes, F32x16 a, F32x16 b) {
  PYBATCH_LANEWISE((lanes >> i & 1) != 0 ? a[i] : b[i]);
}
PYBATCH_INLINE F32x16 zero_where_below(F32x16 x, F32x16 limit, F32x16 a) {
  PYBATCH_LANEWISE(x[i] < limit[i] ? 0.0f : a[i]);
}
PYBATCH_INLINE uint32_t lanes_at_least(F32x16 x, F32x16 limit) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(x[i] >= limit[i]) << i;
  return mask;
}
#undef PYBATCH_LANEWISE

#endif
#undef PYBATCH_PARTWISE

// ---- the same on every instruction set ----

template <class T>
PYBATCH_INLINE F32x16 load_first(const T* p, int64_t n) {  // lanes from n on are zero; reads n elements only
  if (n >= kLanes) return load(p);
  T buffer[kLanes] = {};
  std::memcpy(static_cast<void*>(buffer), p, static_cast<size_t>(n) * sizeof(T));
  return load(buffer);
}
template <class T>
PYBATCH_INLINE void store_first(T* p, F32x16 a, int64_t n) {  // writes n elements only
  if (n >= kLanes) return store(p, a);
  T buffer[kLanes];
  store(buffer, a);
  std::memcpy(static_cast<void*>(p), buffer, static_cast<size_t>(n) * sizeof(T));
}

// Sums and maxima over the lanes, pairwise in one fixed tree: i with i + 8, then + 4, + 2, + 1.
template <class F>
PYBATCH_INLINE float reduce(F32x16 a, F&& f) {
  float lanes[kLanes];
  store(lanes, a);
  F32x4 v[4];
  std::memcpy(v, lanes, sizeof(v));
  v[0] = f(f(v[0], v[2]), f(v[1], v[3]));
  const F32x4 swapped = {v[0][2], v[0][3], v[0][0], v[0][1]};
  v[0] = f(v[0], swapped);
  const F32x4 odd = {v[0][1], v[0][0], v[0][3], v[0][2]};
  return f(v[0], odd)[0];
}
PYBATCH_INLINE float reduce_add(F32x16 a) {
  return reduce(a, [](F32x4 x, F32x4 y) PYBATCH_INLINE_LAMBDA { return x + y; });
}
PYBATCH_INLINE float reduce_max(F32x16 a) {
  return reduce(a, [](F32x4 x, F32x4 y) PYBATCH_INLINE_LAMBDA { return x > y ? x : y; });
}

// exp to about 1 ulp for x <= 88: x = n ln2 + r, a polynomial of degree 6 in r (Cephes expf), times 2^n.
// Below -87 the result is exactly 0, so that a masked score of -inf adds nothing.
PYBATCH_INLINE F32x16 exp(F32x16 x) {
  const F32x16 low = broadcast(-87.0f);
  F32x16 t = min(broadcast(88.0f), max(low, x));  // in this order both propagate NaN
  F32x16 rounded = fma(t, broadcast(1.44269504088896341f), broadcast(kRounder)), n = rounded - broadcast(kRounder);
  F32x16 r = fma(n, broadcast(-0.693359375f), t);
  r = fma(n, broadcast(2.12194440e-4f), r);
  F32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  return zero_where_below(x, low, p * power_of_two(rounded));
}

// Calls f with a typed null pointer that stands for the element type.
template <class F>
PYBATCH_INLINE void with_float_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(static_cast<float*>(nullptr));
    case DType::f16: return f(static_cast<f16*>(nullptr));
    default: return f(static_cast<bf16*>(nullptr));
  }
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
