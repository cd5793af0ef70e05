// Each instruction of ptx.cuh on a warp's registers, and the conversions and intrinsics on arrays, for test_twins.py.
// Lane l reads its operands at in[l * kIn ...] and writes its results at out[l * kOut ...].
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace {

using namespace pybatch::cuda;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x); }

// a[4], b[2], d[4] in, d[4] out.
template <class D, class F>
__device__ __forceinline__ void on_fragments(const uint32_t* in, uint32_t* out, F multiply) {
  in += 10 * lane();
  uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  D d[4];
  memcpy(d, in + 6, sizeof d);
  multiply(d, a, b);
  memcpy(out + 4 * lane(), d, sizeof d);
}

__global__ void mma_f16(const uint32_t* in, uint32_t* out, int) {
  on_fragments<float>(in, out, [](float(&d)[4], auto& a, auto& b) { mma_m16n8k16_f16(d, a, b); });
}
__global__ void mma_bf16(const uint32_t* in, uint32_t* out, int) {
  on_fragments<float>(in, out, [](float(&d)[4], auto& a, auto& b) { mma_m16n8k16_bf16(d, a, b); });
}
__global__ void mma_s8(const uint32_t* in, uint32_t* out, int) {
  on_fragments<int32_t>(in, out, [](int32_t(&d)[4], auto& a, auto& b) { mma_m16n8k32_s8(d, a, b); });
}

// in: 32 rows of 16 bytes; lane l gives row l.
template <int kCount, class F>
__device__ __forceinline__ void on_rows(const uint32_t* in, uint32_t* out, F load) {
  uint32_t* shared = dynamic_shared<uint32_t>();
  for (int i = 0; i < 4; ++i) shared[4 * lane() + i] = in[4 * lane() + i];
  __syncwarp();
  uint32_t r[kCount];
  load(r, shared + 4 * lane());
  for (int i = 0; i < kCount; ++i) out[kCount * lane() + i] = r[i];
}

__global__ void ldmatrix4(const uint32_t* in, uint32_t* out, int) {
  on_rows<4>(in, out, [](uint32_t(&r)[4], const void* row) { ldmatrix_x4(r, row); });
}
__global__ void ldmatrix4_trans(const uint32_t* in, uint32_t* out, int) {
  on_rows<4>(in, out, [](uint32_t(&r)[4], const void* row) { ldmatrix_x4_trans(r, row); });
}
__global__ void ldmatrix2(const uint32_t* in, uint32_t* out, int) {
  on_rows<2>(in, out, [](uint32_t(&r)[2], const void* row) { ldmatrix_x2(r, row); });
}
__global__ void ldmatrix2_trans(const uint32_t* in, uint32_t* out, int) {
  on_rows<2>(in, out, [](uint32_t(&r)[2], const void* row) { ldmatrix_x2_trans(r, row); });
}

// Eight results a lane, of in[lane] and the lane number.
__global__ void shuffles(const uint32_t* in, uint32_t* out, int) {
  uint32_t x = in[lane()];
  uint32_t* to = out + 8 * lane();
  to[0] = __shfl_sync(~0u, x, lane() * 7 % 32);
  to[1] = __shfl_sync(~0u, x, 5, 8);
  to[2] = __shfl_xor_sync(~0u, x, 9);
  to[3] = __shfl_xor_sync(~0u, x, 24, 16);
  to[4] = __shfl_down_sync(~0u, x, 3);
  to[5] = __shfl_down_sync(~0u, x, 3, 8);
  to[6] = __shfl_up_sync(~0u, x, 3);
  to[7] = __shfl_up_sync(~0u, x, 3, 8);
}

__global__ void votes(const uint32_t* in, uint32_t* out, int) {
  bool odd = in[lane()] % 2;
  uint32_t* to = out + 4 * lane();
  to[0] = __ballot_sync(~0u, odd);
  to[1] = static_cast<uint32_t>(__any_sync(~0u, odd) != 0);
  to[2] = static_cast<uint32_t>(__all_sync(~0u, odd) != 0);
  // Two halves of the warp vote apart.
  to[3] = lane() < 16 ? __ballot_sync(0x0000ffff, odd) : __ballot_sync(0xffff0000, odd);
}

// ---- elementwise: n elements, 32 threads ----

template <class F>
__device__ __forceinline__ void each(int n, const F& f) {
  for (int i = lane(); i < n; i += 32) f(i);
}

__global__ void permute(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = prmt(in[3 * i], in[3 * i + 1], in[3 * i + 2]); });
}
__global__ void ex2(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = __float_as_uint(ex2_approx(__uint_as_float(in[i]))); });
}
__global__ void to_int(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = static_cast<uint32_t>(__float2int_rn(__uint_as_float(in[i]))); });
}
__global__ void float_to_half(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = __half_as_ushort(__float2half_rn(__uint_as_float(in[i]))); });
}
__global__ void half_to_float(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = __float_as_uint(__half2float(__ushort_as_half(static_cast<uint16_t>(in[i])))); });
}
__global__ void float_to_bfloat16(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(in[i]))); });
}
__global__ void bfloat16_to_float(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) {
    out[i] = __float_as_uint(__bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(in[i]))));
  });
}
__global__ void float_to_e4m3(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = __nv_cvt_float_to_fp8(__uint_as_float(in[i]), __NV_SATFINITE, __NV_E4M3); });
}
__global__ void e4m3_to_half(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) { out[i] = __nv_cvt_fp8_to_halfraw(static_cast<unsigned char>(in[i]), __NV_E4M3).x; });
}
// a, b, c as halves -> a + b, a * b, a * b + c
__global__ void half_arithmetic(const uint32_t* in, uint32_t* out, int n) {
  each(n, [&](int i) {
    auto half = [&](int j) { return __ushort_as_half(static_cast<uint16_t>(in[3 * i + j])); };
    out[3 * i] = __half_as_ushort(__hadd(half(0), half(1)));
    out[3 * i + 1] = __half_as_ushort(__hmul(half(0), half(1)));
    out[3 * i + 2] = __half_as_ushort(__hfma(half(0), half(1), half(2)));
  });
}

struct Case {
  const char* name;
  void (*kernel)(const uint32_t*, uint32_t*, int);
};
#define CASE(name) {#name, name}
const Case kCases[] = {
    CASE(mma_f16),       CASE(mma_bf16),        CASE(mma_s8),        CASE(ldmatrix4),         CASE(ldmatrix4_trans),
    CASE(ldmatrix2),     CASE(ldmatrix2_trans), CASE(shuffles),      CASE(votes),             CASE(permute),
    CASE(ex2),           CASE(to_int),          CASE(float_to_half), CASE(half_to_float),     CASE(float_to_bfloat16),
    CASE(float_to_e4m3), CASE(e4m3_to_half),    CASE(half_arithmetic), CASE(bfloat16_to_float),
};

}  // namespace

extern "C" void run(const char* name, const uint32_t* in, uint32_t* out, int n) {
  for (const Case& c : kCases) {
    if (!std::strcmp(c.name, name)) launch(false, c.kernel, dim3(1), dim3(32), 512, in, out, n);
  }
}
