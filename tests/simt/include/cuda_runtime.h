// SIMT twin of the CUDA runtime: its types, the built-in variables and functions of device code, and the few host calls
// that kernels' launchers make. All work runs at once, in order, on the host.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "simt/runtime.h"
#include "simt/types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
#define __grid_constant__

// ---- host ----

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
using cudaStream_t = struct CUstream_st*;

inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

// Few multiprocessors, so that small tests fill them.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(simt::max_shared_bytes()); return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = simt::compute_capability() / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = simt::compute_capability() % 10; return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = simt::driver_function(symbol);
  *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
  return std::memset(p, value, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

// ---- built-in variables ----

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_dim())
#define gridDim (::simt::grid_dim())
constexpr int warpSize = 32;

// ---- synchronisation ----

inline void __syncthreads(simt::Location at = simt::Location::current()) { simt::sync_block(at); }
inline void __syncwarp(unsigned mask = ~0u, simt::Location at = simt::Location::current()) { simt::sync_warp(mask, at); }
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() {}

// Nothing keeps the lanes of a warp together, so none but the caller is sure to be active.
inline unsigned __activemask() { return 1u << simt::lane(); }

// ---- warp shuffles and votes ----

namespace simt {

template <class T>
T shuffle(unsigned mask, T value, int source, const char* name, Location at) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, name, at);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

}  // namespace simt

// Lanes fall into sections of `width`; a source outside the section gives the lane's own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Location at = simt::Location::current()) {
  int lane = static_cast<int>(simt::lane());
  return simt::shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)), "__shfl_sync", at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, simt::Location at = simt::Location::current()) {
  // PTX shfl.bfly: a source beyond the end of the own section is out of range; one in an earlier section is not.
  int lane = static_cast<int>(simt::lane()), source = lane ^ bits;
  return simt::shuffle(mask, value, source <= (lane | (width - 1)) ? source : -1, "__shfl_xor_sync", at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                   simt::Location at = simt::Location::current()) {
  int lane = static_cast<int>(simt::lane()), source = lane + static_cast<int>(by);
  return simt::shuffle(mask, value, source <= (lane | (width - 1)) ? source : -1, "__shfl_down_sync", at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, simt::Location at = simt::Location::current()) {
  int lane = static_cast<int>(simt::lane()), source = lane - static_cast<int>(by);
  return simt::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : -1, "__shfl_up_sync", at);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, simt::Location at = simt::Location::current()) {
  return simt::vote(mask, predicate, "__ballot_sync", at);
}
inline int __any_sync(unsigned mask, bool predicate, simt::Location at = simt::Location::current()) {
  return simt::vote(mask, predicate, "__any_sync", at) != 0;
}
inline int __all_sync(unsigned mask, bool predicate, simt::Location at = simt::Location::current()) {
  return simt::vote(mask, predicate, "__all_sync", at) == mask;
}

// ---- atomics: each returns the old value ----

namespace simt {

template <class T, class F>
__attribute__((no_sanitize("thread"))) T atomic_update(T* p, const F& f) {
  T old, wanted;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do {
    wanted = f(old);
  } while (!__atomic_compare_exchange(p, &old, &wanted, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return old;
}

template <class T, class F>
__forceinline__ T atomic(T* p, const F& f) {
  check_atomic(p, sizeof(T));
  return atomic_update(p, f);
}

}  // namespace simt

template <class T>
__forceinline__ T atomicAdd(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T old) { return static_cast<T>(old + x); });
}
template <class T>
__forceinline__ T atomicSub(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T old) { return static_cast<T>(old - x); });
}
template <class T>
__forceinline__ T atomicMax(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T old) { return old > x ? old : x; });
}
template <class T>
__forceinline__ T atomicMin(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T old) { return old < x ? old : x; });
}
template <class T>
__forceinline__ T atomicOr(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T old) { return old | x; });
}
template <class T>
__forceinline__ T atomicAnd(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T old) { return old & x; });
}
template <class T>
__forceinline__ T atomicExch(T* p, std::type_identity_t<T> x) {
  return simt::atomic(p, [x](T) { return x; });
}
template <class T>
__forceinline__ T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  return simt::atomic(p, [expected, x](T old) { return old == expected ? x : old; });
}
__forceinline__ unsigned atomicInc(unsigned* p, unsigned limit) {
  return simt::atomic(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}

// ---- arithmetic ----

using std::isfinite;

template <class T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __saturatef(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

// Conversions to integers saturate; NaN gives 0.
inline int __float2int_rn(float x) {
  return std::isnan(x) ? 0 : static_cast<int>(std::clamp(std::nearbyint(double{x}), -2147483648.0, 2147483647.0));
}
inline int __float2int_rz(float x) {
  return std::isnan(x) ? 0 : static_cast<int>(std::clamp(double{x}, -2147483648.0, 2147483647.0));
}
inline int __float2int_rd(float x) { return __float2int_rz(std::floor(x)); }
inline int __float2int_ru(float x) { return __float2int_rz(std::ceil(x)); }
inline unsigned __float2uint_rn(float x) {
  return std::isnan(x) ? 0 : static_cast<unsigned>(std::clamp(std::nearbyint(double{x}), 0.0, 4294967295.0));
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (x >> i & 1) << (31 - i);
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (by & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (by & 31));
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}
// Byte i of the result is byte (selector >> 4i) & 7 of b:a.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return r;
}

// CUDA has these in the global namespace, for every pair of arithmetic types.
template <class A, class B>
  requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
  requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
