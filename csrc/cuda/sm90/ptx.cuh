// The instructions that Hopper has beyond those of cuda/ptx.cuh: barriers in shared memory, bulk and tensor copies, and
// matrix products of a warpgroup (four warps, the first of them a multiple of four). tests/simt has their host twins.
#pragma once

#include <cuda.h>

#include "cuda/ptx.cuh"

namespace pybatch::cuda {

// ---- mbarrier: a phase ends once `count` threads have arrived and all expected bytes have come; then the next begins

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and has the phase wait for this many more bytes of copies.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Whether the phase of this parity (the first phase has 0) has ended; may wait a while for it.
__device__ __forceinline__ bool mbarrier_try_wait_parity(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

// Orders this thread's writes to shared memory before accesses by copies and wgmma: those use the
// asynchronous proxy.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- copies, global to shared, by one thread: their bytes are counted by the barrier ----

// Addresses and bytes are multiples of 16.
__device__ __forceinline__ void cp_async_bulk(void* smem, const void* gmem, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(smem)),
               "l"(gmem), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// The map's box whose first element is column x of row y; zeros, which count as bytes, for what lies outside the
// matrix.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(void* smem, const CUtensorMap& map, int32_t x, int32_t y,
                                                        uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(smem)),
      "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier))
      : "memory");
}

// ---- clusters: blocks that run at one time and reach each other's shared memory ----

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
// Waits for all threads of the cluster that have not returned.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Orders this thread's mbarrier_init before their use by other blocks, which cluster_sync tells of it.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// At the barrier that is where `barrier` is, in the shared memory of that block of the cluster.
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// cp_async_bulk_tensor_2d to that place, and the barrier's, in every block whose bit is set.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(void* smem, const CUtensorMap& map, int32_t x,
                                                                  int32_t y, uint64_t* barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, "
      "%3}], [%4], %5;" ::"r"(shared_address(smem)),
      "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}

// ---- wgmma ----

// Before the first wgmma of a group: orders it after what wrote the registers that it takes.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N of the latest groups are unfinished; the others' registers may be touched again.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The compiler does not know that a wgmma writes d until the wait: this keeps what uses it behind.
template <int kCount>
__device__ __forceinline__ void wgmma_settled(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define PYBATCH_D8(c, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define PYBATCH_D32_FROM(c, i) PYBATCH_D8(c, i), PYBATCH_D8(c, i + 8), PYBATCH_D8(c, i + 16), PYBATCH_D8(c, i + 24)
#define PYBATCH_D32(c) PYBATCH_D32_FROM(c, 0)
#define PYBATCH_D64(c) PYBATCH_D32_FROM(c, 0), PYBATCH_D32_FROM(c, 32)
#define PYBATCH_D88(c) PYBATCH_D64(c), PYBATCH_D8(c, 64), PYBATCH_D8(c, 72), PYBATCH_D8(c, 80)
#define PYBATCH_D128(c) PYBATCH_D64(c), PYBATCH_D32_FROM(c, 64), PYBATCH_D32_FROM(c, 96)
#define PYBATCH_10(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define PYBATCH_60 PYBATCH_10() PYBATCH_10(1) PYBATCH_10(2) PYBATCH_10(3) PYBATCH_10(4) PYBATCH_10(5)
#define PYBATCH_80 PYBATCH_60 PYBATCH_10(6) PYBATCH_10(7)
#define PYBATCH_32 PYBATCH_10() PYBATCH_10(1) PYBATCH_10(2) "%30, %31"
#define PYBATCH_64 PYBATCH_60 "%60, %61, %62, %63"
#define PYBATCH_88 PYBATCH_80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define PYBATCH_128 \
  PYBATCH_80 PYBATCH_10(8) PYBATCH_10(9) PYBATCH_10(10) PYBATCH_10(11) "%120, %121, %122, %123, %124, %125, %126, " \
                                                                       "%127"
#define PYBATCH_INT(x) "+r"(x)
#define PYBATCH_FLOAT(x) "+f"(x)
// shape_and_types and immediates are those of the instruction; the numbers are its operands' after the d of `count`.
#define PYBATCH_WGMMA(shape_and_types, immediates, c, count, a0, a1, a2, a3, descriptor, scale_d) \
  asm volatile(                                                                                   \
      "{\n"                                                                                       \
      ".reg .pred accumulate;\n"                                                                  \
      "setp.ne.b32 accumulate, %" #scale_d                                                        \
      ", 0;\n"                                                                                    \
      "wgmma.mma_async.sync.aligned." shape_and_types " {" PYBATCH_##count                        \
      "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #descriptor ", accumulate" immediates      \
      ";\n"                                                                                       \
      "}"                                                                                         \
      : PYBATCH_D##count(c)                                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)))

// d += a * b (or d = a * b, if not `accumulate`) for 64 x kN and 32 bytes of K, b by its descriptor (wgmma.cuh). Each
// warp has the registers of sixteen rows: a as mma.m16n8k32 (m16n8k16) takes it, d[4 j..4 j + 3] as the d of columns 8
// j to 8 j + 7. Neither may be touched until a wait has ended the group. kNMajor: b's columns lie side by side (its
// transpose bit).
template <int kN>
__device__ __forceinline__ void wgmma_m64k32_s8(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate = true) {
  static_assert(kN == 64 || kN == 128 || kN == 256);
  if constexpr (kN == 64) {
    PYBATCH_WGMMA("m64n64k32.s32.s8.s8", "", PYBATCH_INT, 32, 32, 33, 34, 35, 36, 37);
  } else if constexpr (kN == 128) {
    PYBATCH_WGMMA("m64n128k32.s32.s8.s8", "", PYBATCH_INT, 64, 64, 65, 66, 67, 68, 69);
  } else {
    PYBATCH_WGMMA("m64n256k32.s32.s8.s8", "", PYBATCH_INT, 128, 128, 129, 130, 131, 132, 133);
  }
}
#define PYBATCH_WGMMA_OF_FLOATS(name, type)                                                                   \
  template <int kN, bool kNMajor = false>                                                                     \
  __device__ __forceinline__ void name(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,                \
                                       bool accumulate = true) {                                              \
    static_assert(kN == 64 || kN == 128 || (kN == 176 && !kNMajor));                                          \
    if constexpr (kN == 64 && kNMajor) {                                                                      \
      PYBATCH_WGMMA("m64n64k16.f32." type "." type, ", 1, 1, 1", PYBATCH_FLOAT, 32, 32, 33, 34, 35, 36, 37);  \
    } else if constexpr (kN == 64) {                                                                          \
      PYBATCH_WGMMA("m64n64k16.f32." type "." type, ", 1, 1, 0", PYBATCH_FLOAT, 32, 32, 33, 34, 35, 36, 37);  \
    } else if constexpr (kN == 128 && kNMajor) {                                                              \
      PYBATCH_WGMMA("m64n128k16.f32." type "." type, ", 1, 1, 1", PYBATCH_FLOAT, 64, 64, 65, 66, 67, 68, 69); \
    } else if constexpr (kN == 128) {                                                                         \
      PYBATCH_WGMMA("m64n128k16.f32." type "." type, ", 1, 1, 0", PYBATCH_FLOAT, 64, 64, 65, 66, 67, 68, 69); \
    } else {                                                                                                  \
      PYBATCH_WGMMA("m64n176k16.f32." type "." type, ", 1, 1, 0", PYBATCH_FLOAT, 88, 88, 89, 90, 91, 92, 93); \
    }                                                                                                         \
  }
PYBATCH_WGMMA_OF_FLOATS(wgmma_m64k16_f16, "f16")
PYBATCH_WGMMA_OF_FLOATS(wgmma_m64k16_bf16, "bf16")

#undef PYBATCH_WGMMA_OF_FLOATS
#undef PYBATCH_WGMMA
#undef PYBATCH_FLOAT
#undef PYBATCH_INT
#undef PYBATCH_128
#undef PYBATCH_88
#undef PYBATCH_64
#undef PYBATCH_32
#undef PYBATCH_80
#undef PYBATCH_60
#undef PYBATCH_10
#undef PYBATCH_D128
#undef PYBATCH_D88
#undef PYBATCH_D64
#undef PYBATCH_D32
#undef PYBATCH_D32_FROM
#undef PYBATCH_D8

// ---- registers, by all warps of a warpgroup alike: gives some back, or waits for more ----

template <int kCount>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

template <int kCount>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace pybatch::cuda
