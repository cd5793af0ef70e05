// SIMT twin of csrc/cuda/sm90/ptx.cuh: what each instruction does, written from the PTX ISA 8.5.
#pragma once

#include <cuda.h>

#include "cuda/ptx.cuh"
#include "simt/async.h"

namespace pybatch::cuda {

// ---- mbarrier ----

inline void mbarrier_init(uint64_t* barrier, uint32_t count, Location at = Location::current()) {
  simt::mbarrier_init(barrier, count, at);
}
inline void mbarrier_arrive(uint64_t* barrier, Location at = Location::current()) {
  simt::mbarrier_arrive(barrier, 0, at);
}
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes, Location at = Location::current()) {
  simt::mbarrier_arrive(barrier, bytes, at);
}
// Comes back once the phase has ended: no program can tell how long one try takes.
inline bool mbarrier_try_wait_parity(uint64_t* barrier, uint32_t parity, Location at = Location::current()) {
  simt::mbarrier_wait(barrier, parity, at);
  return true;
}
inline void fence_proxy_async() { simt::fence_proxy_async(); }

// ---- bulk and tensor copies ----

inline void cp_async_bulk(void* smem, const void* gmem, uint32_t bytes, uint64_t* barrier,
                          Location at = Location::current()) {
  simt::bulk_copy(smem, gmem, bytes, barrier, at);
}
inline void cp_async_bulk_tensor_2d(void* smem, const CUtensorMap& map, int32_t x, int32_t y, uint64_t* barrier,
                                    Location at = Location::current()) {
  simt::tensor_copy(smem, map, x, y, barrier, at);
}

// ---- clusters, of one block each ----

inline uint32_t cluster_rank() { return 0; }
inline uint32_t cluster_size() { return 1; }
inline void cluster_sync() {}
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t, Location at = Location::current()) {
  simt::mbarrier_arrive(barrier, 0, at);
}
inline void cp_async_bulk_tensor_2d_multicast(void* smem, const CUtensorMap& map, int32_t x, int32_t y,
                                              uint64_t* barrier, uint16_t, Location at = Location::current()) {
  simt::tensor_copy(smem, map, x, y, barrier, at);
}

// ---- wgmma ----

inline void wgmma_fence(Location at = Location::current()) { simt::wgmma_fence(at); }
inline void wgmma_commit(Location at = Location::current()) { simt::wgmma_commit(at); }
template <int N>
void wgmma_wait(Location at = Location::current()) {
  simt::wgmma_wait(N, at);
}
template <int kCount>
void wgmma_settled(float (&)[kCount]) {}
template <int kN>
void wgmma_m64k32_s8(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                     Location at = Location::current()) {
  simt::wgmma_s8(d, kN, a, b, accumulate, at);
}
template <int kN, bool kNMajor = false>
void wgmma_m64k16_f16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                      Location at = Location::current()) {
  simt::wgmma_float(d, simt::kHalf, kN, a, b, kNMajor, accumulate, at);
}
template <int kN, bool kNMajor = false>
void wgmma_m64k16_bf16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                       Location at = Location::current()) {
  simt::wgmma_float(d, simt::kBFloat16, kN, a, b, kNMajor, accumulate, at);
}

// ---- registers ----

template <int kCount>
void setmaxnreg_dec(Location at = Location::current()) {
  simt::set_registers("setmaxnreg.dec", kCount, at);
}
template <int kCount>
void setmaxnreg_inc(Location at = Location::current()) {
  simt::set_registers("setmaxnreg.inc", kCount, at);
}

}  // namespace pybatch::cuda
