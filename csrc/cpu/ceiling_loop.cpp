#include "cpu/vec.h"
#include "pybatch/ceilings.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/amx.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Independent chains, enough to hide the latency of an instruction and few enough to stay in registers.
#if defined(PYBATCH_ANY_AVX512)
constexpr int kChains = 12;
#elif defined(PYBATCH_ANY_AVX2)
constexpr int kChains = 5;  // of two registers each
#elif defined(PYBATCH_ANY_NEON)
constexpr int kChains = 6;  // of four registers each
#else
constexpr int kChains = 2;
#endif

template <class T>
PYBATCH_INLINE void keep(const T& value) {  // the compiler must assume that the value is read
  asm volatile("" : : "m"(value) : "memory");
}

double multiply_add_floats(int64_t rounds) {
  F32x16 sum[kChains];
  for (int c = 0; c < kChains; ++c) sum[c] = broadcast(static_cast<float>(c));
  const F32x16 a = broadcast(0.5f), b = broadcast(static_cast<float>(rounds));
  for (int64_t i = 0; i < rounds; ++i) {
    for (int c = 0; c < kChains; ++c) sum[c] = fma(sum[c], a, b);
  }
  keep(sum);
  return 2.0 * kLanes * kChains * static_cast<double>(rounds);
}

#if defined(PYBATCH_ISA_AMX)

double multiply_add_bytes(int64_t rounds) {  // in four tiles, as many as are needed to hide the latency of a product
  static constexpr TileShapes kShapes;
  const TilesInUse tiles(kShapes);
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  zero_tile<4>();  // zeros take as long
  zero_tile<5>();
  for (int64_t i = 0; i < rounds; ++i) {
    multiply_unsigned_signed<0, 4, 5>();
    multiply_unsigned_signed<1, 4, 5>();
    multiply_unsigned_signed<2, 4, 5>();
    multiply_unsigned_signed<3, 4, 5>();
  }
  return 2.0 * 16 * 16 * 64 * 4 * static_cast<double>(rounds);
}

#elif defined(PYBATCH_ANY_AVX512)

double multiply_add_bytes(int64_t rounds) {
  __m512i sum[kChains];
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_epi32(c);
  const __m512i x = _mm512_set1_epi8(3), w = _mm512_set1_epi8(static_cast<char>(rounds));
  for (int64_t i = 0; i < rounds; ++i) {
    for (int c = 0; c < kChains; ++c) sum[c] = _mm512_dpbusd_epi32(sum[c], x, w);
  }
  keep(sum);
  return 2.0 * 64 * kChains * static_cast<double>(rounds);
}

#elif defined(PYBATCH_ANY_AVX2)

double multiply_add_bytes(int64_t rounds) {
  constexpr int kRegisters = 2 * kChains;
  __m256i sum[kRegisters];
  for (int c = 0; c < kRegisters; ++c) sum[c] = _mm256_set1_epi32(c);
  const __m256i x = _mm256_set1_epi8(3), w = _mm256_set1_epi8(static_cast<char>(rounds));
  for (int64_t i = 0; i < rounds; ++i) {
    for (int c = 0; c < kRegisters; ++c) {
#if defined(PYBATCH_ISA_AVX2_VNNI)
      sum[c] = _mm256_dpbusd_avx_epi32(sum[c], x, w);
#else  // two products at a time, of which two are added before they are widened
      const __m256i words = _mm256_add_epi16(_mm256_maddubs_epi16(sum[c], w), _mm256_maddubs_epi16(x, sum[c]));
      sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(words, w));
#endif
    }
  }
  keep(sum);
#if defined(PYBATCH_ISA_AVX2_VNNI)
  constexpr double kProducts = 32;
#else
  constexpr double kProducts = 64;
#endif
  return 2.0 * kProducts * kRegisters * static_cast<double>(rounds);
}

#elif defined(PYBATCH_ANY_NEON)

double multiply_add_bytes(int64_t rounds) {
  constexpr int kRegisters = 4 * kChains;
  int32x4_t sum[kRegisters];
  for (int c = 0; c < kRegisters; ++c) sum[c] = vdupq_n_s32(c);
  const int8x16_t x = vdupq_n_s8(3), w = vdupq_n_s8(static_cast<int8_t>(rounds));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 24
    for (int c = 0; c < kRegisters; ++c) {
#if defined(PYBATCH_ISA_NEON_I8MM)
      sum[c] = vmmlaq_s32(sum[c], x, w);
#elif defined(PYBATCH_ISA_NEON_DOTPROD)
      sum[c] = vdotq_s32(sum[c], x, w);
#else  // half of the bytes, of which two products are added in 16 bits
      const int8x8_t bytes = vget_low_s8(vreinterpretq_s8_s32(sum[c]));
      sum[c] = vpadalq_s16(sum[c], vmlal_s8(vmull_s8(bytes, vget_low_s8(x)), bytes, vget_low_s8(w)));
#endif
    }
  }
  keep(sum);
#if defined(PYBATCH_ISA_NEON_I8MM)
  constexpr double kProducts = 32;
#else
  constexpr double kProducts = 16;
#endif
  return 2.0 * kProducts * kRegisters * static_cast<double>(rounds);
}

#else

double multiply_add_bytes(int64_t rounds) {  // widened to 16 bits, which a vector unit multiplies
  constexpr int kCount = 64;
  int16_t x[kCount], w[kCount];
  int32_t sum[kCount / 2] = {};
  for (int i = 0; i < kCount; ++i) x[i] = w[i] = static_cast<int16_t>(i);
  for (int64_t round = 0; round < rounds; ++round) {
    keep(x);
    for (int i = 0; i < kCount / 2; ++i) sum[i] += x[2 * i] * w[2 * i] + x[2 * i + 1] * w[2 * i + 1];
  }
  keep(sum);
  return 2.0 * kCount * static_cast<double>(rounds);
}

#endif

double read_bytes(const char* src, int64_t bytes) {
  constexpr int kStreams = 4;
  F32x16 sum[kStreams] = {zeros(), zeros(), zeros(), zeros()};
  auto* p = reinterpret_cast<const float*>(src);
  for (int64_t i = 0; i < bytes / 4; i += kStreams * kLanes) {
    for (int s = 0; s < kStreams; ++s) sum[s] = sum[s] + load(p + i + s * kLanes);
  }
  keep(sum);
  return static_cast<double>(bytes);
}

double copy_bytes(char* dst, const char* src, int64_t bytes) {
  std::memcpy(dst, src, static_cast<size_t>(bytes));
  return 2.0 * static_cast<double>(bytes);
}

}  // namespace

void ceiling_loop(const CeilingLoopParams& p) {
  switch (p.ceiling) {
    case Ceiling::fp32_flops: *p.done = multiply_add_floats(p.rounds); break;
    case Ceiling::int8_ops: *p.done = multiply_add_bytes(p.rounds); break;
    case Ceiling::read_bytes: *p.done = read_bytes(p.src, p.bytes); break;
    case Ceiling::copy_bytes: *p.done = copy_bytes(p.dst, p.src, p.bytes); break;
  }
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
