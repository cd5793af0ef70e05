// SIMT twin of csrc/cuda/ptx.cuh: what each instruction does, written from the PTX ISA 8.5.
#pragma once

#include <cuda_runtime.h>

#include "simt/mma.h"

namespace pybatch::cuda {

using simt::Location;

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::shared_memory());
}

inline uint32_t shared_address(const void* p) { return simt::shared_address(p); }

// ---- programmatic dependent launch ----

inline void griddepcontrol_wait() { simt::wait_for_kernels_before(); }
inline void griddepcontrol_launch_dependents() {}

// ---- global memory ----

__forceinline__ uint4 load_global_16(const void* p) {
  simt::check_read(p, 16, "ld.global.v4");
  uint4 v;
  return std::memcpy(&v, p, 16), v;
}

__forceinline__ void store_global_16(void* p, uint4 v) {
  simt::check_write(p, 16, "st.global.v4");
  std::memcpy(p, &v, 16);
}

// ---- cp.async ----

__forceinline__ void cp_async_16(void* smem, const void* gmem) { simt::async_copy(smem, gmem, 16, 16); }
__forceinline__ void cp_async_16(void* smem, const void* gmem, bool valid) {
  simt::async_copy(smem, gmem, 16, valid ? 16 : 0);
}
__forceinline__ void cp_async_8(void* smem, const void* gmem, bool valid) {
  simt::async_copy(smem, gmem, 8, valid ? 8 : 0);
}
__forceinline__ void cp_async_4(void* smem, const void* gmem, bool valid) {
  simt::async_copy(smem, gmem, 4, valid ? 4 : 0);
}
inline void cp_async_commit() { simt::async_commit(); }
template <int N>
void cp_async_wait() {
  simt::async_wait(N);
}

// ---- ldmatrix ----

__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* smem, Location at = Location::current()) {
  simt::ldmatrix(r, 4, false, smem, "ldmatrix.x4", at);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* smem, Location at = Location::current()) {
  simt::ldmatrix(r, 4, true, smem, "ldmatrix.x4.trans", at);
}
__forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* smem, Location at = Location::current()) {
  simt::ldmatrix(r, 2, false, smem, "ldmatrix.x2", at);
}
__forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* smem, Location at = Location::current()) {
  simt::ldmatrix(r, 2, true, smem, "ldmatrix.x2.trans", at);
}

// ---- mma.sync ----

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Location at = Location::current()) {
  simt::mma_m16n8k16(d, a, b, simt::kHalf, "mma.m16n8k16.f16", at);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Location at = Location::current()) {
  simt::mma_m16n8k16(d, a, b, simt::kBFloat16, "mma.m16n8k16.bf16", at);
}
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Location at = Location::current()) {
  simt::mma_m16n8k32_s8(d, a, b, at);
}

// ---- registers ----

// x, unknown to the compiler, so that what depends on it is not computed ahead and kept in registers.
inline int opaque(int x) { return x; }

// Selector nibbles: bits 0-2 choose a byte of b:a, bit 3 replicates its sign.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    uint32_t choice = selector >> 4 * i, byte = static_cast<uint32_t>(bytes >> 8 * (choice & 7)) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
    r |= byte << 8 * i;
  }
  return r;
}

inline uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }
inline uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) { return (a & b) ^ c; }

// ex2.approx.ftz: subnormal inputs count as zero, subnormal results become zero. NaN is canonical.
inline float ex2_approx(float x) {
  float y = exp2f(std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

// ---- barriers ----

inline void named_barrier_sync(int id, int threads, Location at = Location::current()) {
  simt::named_barrier(id, threads, at);
}

}  // namespace pybatch::cuda
