// Small kernels of Hopper's instructions for test_hopper.py: some right, some with one fault. All take 128 rows of 128
// bytes, in memory and by a tensor map, and write words; a block's shared memory has room for the rows and barriers.
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/sm90/ptx.cuh"
#include "cuda/sm90/tensor_map.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace {

using namespace pybatch::cuda;

constexpr int kRows = 128, kBytes = kRows * 128, kThreads = 128;

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ char* rows() { return dynamic_shared<char>(); }
__device__ __forceinline__ uint64_t* barrier(int i = 0) { return reinterpret_cast<uint64_t*>(rows() + kBytes) + i; }

__device__ __forceinline__ void make_barriers(uint32_t arrivals = 1) {
  if (thread() == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(barrier(i), arrivals);
    fence_proxy_async();
  }
  __syncthreads();
}
__device__ __forceinline__ void start_copy(const CUtensorMap& map, int x = 0, int y = 0) {
  if (thread() != 0) return;
  mbarrier_arrive_expect_tx(barrier(), kBytes);
  cp_async_bulk_tensor_2d(rows(), map, x, y, barrier());
}
__device__ __forceinline__ void wait(uint32_t parity = 0, int i = 0) {
  while (!mbarrier_try_wait_parity(barrier(i), parity)) {
  }
}
__device__ __forceinline__ void write_rows(uint32_t* out) {
  for (int i = thread(); i < kBytes / 4; i += kThreads) out[i] = reinterpret_cast<const uint32_t*>(rows())[i];
}

// The rows have landed, and a product of their first 32 bytes is on its way.
struct Product {
  uint32_t a[4];
  int32_t d[64];
};
__device__ __forceinline__ void start_product(Product& p, const CUtensorMap& map) {
  make_barriers();
  start_copy(map);
  wait();
  for (int i = 0; i < 4; ++i) p.a[i] = 0x01010101;
  for (int i = 0; i < 64; ++i) p.d[i] = 0;
  wgmma_fence();
  wgmma_m64k32_s8<128>(p.d, p.a, wgmma_descriptor(rows()));
  wgmma_commit();
}
__device__ __forceinline__ void write_product(uint32_t* out, const Product& p) {
  for (int i = 0; i < 64; ++i) out[64 * thread() + i] = static_cast<uint32_t>(p.d[i]);
}

// ---- right: the rows as they lie in shared memory, or a product ----

__global__ void right_copy(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  wait();
  write_rows(out);
}

__global__ void right_copy_beyond_the_edges(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map, 48, -3);
  wait();
  write_rows(out);
}

// A warp copies the rows a sixteenth at a time, the others read them, and both barriers go through many phases.
__global__ void right_ring(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  constexpr int kPart = kBytes / 16;
  if (thread() == 0) {
    mbarrier_init(barrier(0), 1);
    mbarrier_init(barrier(1), kThreads - 32);
    fence_proxy_async();
  }
  __syncthreads();
  for (int i = 0; i < 16; ++i) {
    if (thread() < 32) {
      if (i > 0) wait((i - 1) % 2, 1);
      if (thread() > 0) continue;
      mbarrier_arrive_expect_tx(barrier(0), kPart);
      cp_async_bulk(rows(), in + i * kPart, kPart / 2, barrier(0));
      cp_async_bulk(rows() + kPart / 2, in + i * kPart + kPart / 2, kPart / 2, barrier(0));
    } else {
      wait(i % 2, 0);
      for (int j = thread() - 32; j < kPart / 4; j += kThreads - 32) {
        out[i * kPart / 4 + j] = reinterpret_cast<const uint32_t*>(rows())[j];
      }
      mbarrier_arrive(barrier(1));
    }
  }
}

__global__ void right_product(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  wgmma_wait<0>();
  write_product(out, p);
}

// in: shared memory as it is to be, then a [thread][4], then d [thread][kN / 2]. D is int32_t or float; product(d, a)
// multiplies with what is in rows().
template <int kN, class D, class Product>
__device__ __forceinline__ void multiply(const char* in, uint32_t* out, Product product) {
  for (int i = thread(); i < kN * 128 / 4; i += kThreads) {
    reinterpret_cast<uint32_t*>(rows())[i] = reinterpret_cast<const uint32_t*>(in)[i];
  }
  fence_proxy_async();
  __syncthreads();
  const auto* registers = reinterpret_cast<const uint32_t*>(in + kN * 128);
  uint32_t a[4];
  D d[kN / 2];
  for (int i = 0; i < 4; ++i) a[i] = registers[4 * thread() + i];
  for (int i = 0; i < kN / 2; ++i) std::memcpy(&d[i], &registers[4 * kThreads + kN / 2 * thread() + i], sizeof d[i]);
  wgmma_fence();
  product(d, a);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < kN / 2; ++i) std::memcpy(&out[kN / 2 * thread() + i], &d[i], sizeof d[i]);
}
// The step-th 32 bytes of K.
__device__ __forceinline__ uint64_t columns(int step) { return wgmma_descriptor(rows() + 32 * step); }
__global__ void multiply_s8_128(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<128, int32_t>(in, out, [](auto& d, auto& a) { wgmma_m64k32_s8<128>(d, a, columns(3)); });
}
__global__ void multiply_s8_256(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<256, int32_t>(in, out, [](auto& d, auto& a) { wgmma_m64k32_s8<256>(d, a, columns(1)); });
}
__global__ void multiply_f16_128(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<128, float>(in, out, [](auto& d, auto& a) { wgmma_m64k16_f16<128>(d, a, columns(2)); });
}
__global__ void multiply_bf16_176(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<176, float>(in, out, [](auto& d, auto& a) { wgmma_m64k16_bf16<176>(d, a, columns(0)); });
}
// Rows of K, 64 of them, the step-th sixteen of which are multiplied.
__device__ __forceinline__ uint64_t rows_of_k(int step) {
  return wgmma_descriptor_n_major(rows() + 16 * 128 * step, 64 * 128);
}
__global__ void multiply_n_major_f16_64(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<64, float>(in, out, [](auto& d, auto& a) { wgmma_m64k16_f16<64, true>(d, a, rows_of_k(0)); });
}
__global__ void multiply_n_major_bf16_64(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<64, float>(in, out, [](auto& d, auto& a) { wgmma_m64k16_bf16<64, true>(d, a, rows_of_k(3)); });
}
__global__ void multiply_n_major_f16_128(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<128, float>(in, out, [](auto& d, auto& a) { wgmma_m64k16_f16<128, true>(d, a, rows_of_k(2)); });
}
__global__ void multiply_n_major_bf16_128(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  multiply<128, float>(in, out, [](auto& d, auto& a) { wgmma_m64k16_bf16<128, true>(d, a, rows_of_k(1)); });
}

// ---- faults of copies and barriers ----

__global__ void reads_before_the_copy_has_landed(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  __syncthreads();
  write_rows(out);
}

__global__ void waits_for_the_phase_before(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  __syncthreads();
  wait(1);
  write_rows(out);
}

__global__ void one_thread_waits_for_all(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  if (thread() == 64) wait();
  write_rows(out);
}

__global__ void expects_too_few_bytes(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  make_barriers();
  if (thread() == 0) {
    mbarrier_arrive_expect_tx(barrier(), kBytes / 2);
    for (int i = 0; i < 2; ++i) cp_async_bulk(rows() + i * kBytes / 2, in + i * kBytes / 2, kBytes / 2, barrier());
  }
  wait();
  write_rows(out);
}

__global__ void expects_too_many_bytes(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  make_barriers();
  if (thread() == 0) {
    mbarrier_arrive_expect_tx(barrier(), kBytes + 16);
    cp_async_bulk(rows(), in, kBytes, barrier());
  }
  wait();
  write_rows(out);
}

__global__ void barrier_is_not_fenced(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  if (thread() == 0) mbarrier_init(barrier(), 1);
  __syncthreads();
  start_copy(map);
  wait();
  write_rows(out);
}

__global__ void nobody_made_the_barrier(const char*, uint32_t*, const __grid_constant__ CUtensorMap map) {
  start_copy(map);
}

__global__ void all_arrive_for_one(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  __syncthreads();
  mbarrier_arrive(barrier());
  write_rows(out);
}

__global__ void bulk_copy_is_misaligned(const char* in, uint32_t*, const __grid_constant__ CUtensorMap) {
  make_barriers();
  if (thread() == 0) cp_async_bulk(rows(), in + 8, 16, barrier());
}

__global__ void bulk_copy_has_an_odd_size(const char* in, uint32_t*, const __grid_constant__ CUtensorMap) {
  make_barriers();
  if (thread() == 0) cp_async_bulk(rows(), in, 24, barrier());
}

__global__ void bulk_copy_past_the_end(const char* in, uint32_t*, const __grid_constant__ CUtensorMap) {
  make_barriers();
  if (thread() == 0) cp_async_bulk(rows(), in + kBytes - 16, 32, barrier());
}

__global__ void ends_during_a_copy(const char*, uint32_t*, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
}

__global__ void copies_over_what_others_read(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  wait();
  write_rows(out);
  start_copy(map);
  wait(1);
}

__global__ void copies_over_stores(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  make_barriers();
  rows()[thread()] = 0;
  __syncthreads();
  start_copy(map);
  wait();
  write_rows(out);
}

// ---- faults of wgmma ----

__global__ void stores_are_not_fenced(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  for (int i = thread(); i < kBytes; i += kThreads) rows()[i] = in[i];
  __syncthreads();
  Product p = {};
  wgmma_fence();
  wgmma_m64k32_s8<128>(p.d, p.a, wgmma_descriptor(rows()));
  wgmma_commit();
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void multiplies_before_the_copy_has_landed(const char*, uint32_t* out,
                                                      const __grid_constant__ CUtensorMap map) {
  make_barriers();
  start_copy(map);
  __syncthreads();
  Product p = {};
  wgmma_fence();
  wgmma_m64k32_s8<128>(p.d, p.a, wgmma_descriptor(rows()));
  wgmma_commit();
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void group_has_no_fence(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  wgmma_wait<0>();
  for (auto& a : p.a) a = 2;
  wgmma_m64k32_s8<128>(p.d, p.a, wgmma_descriptor(rows()));
  wgmma_commit();
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void a_changes_too_soon(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  p.a[1] = 7;
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void d_changes_too_soon(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  p.d[5] += 7;
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void b_changes_too_soon(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  start_copy(map);
  wgmma_wait<0>();
  wait(1);
  write_product(out, p);
}

__global__ void returns_before_the_wait(const char*, uint32_t*, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  wgmma_wait<1>();
}

__global__ void a_warp_stays_away(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  for (int i = thread(); i < kBytes; i += kThreads) rows()[i] = in[i];
  fence_proxy_async();
  __syncthreads();
  if (thread() >= 96) return;
  Product p = {};
  wgmma_fence();
  wgmma_m64k32_s8<128>(p.d, p.a, wgmma_descriptor(rows()));
  wgmma_commit();
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void warps_disagree(const char* in, uint32_t* out, const __grid_constant__ CUtensorMap) {
  for (int i = thread(); i < kBytes; i += kThreads) rows()[i] = in[i];
  fence_proxy_async();
  __syncthreads();
  Product p = {};
  wgmma_fence();
  wgmma_m64k32_s8<128>(p.d, p.a, wgmma_descriptor(rows() + thread() / 96 * 32));
  wgmma_commit();
  wgmma_wait<0>();
  write_product(out, p);
}

__global__ void wants_more_registers_than_there_are(const char*, uint32_t*, const __grid_constant__ CUtensorMap) {
  setmaxnreg_inc<240>();
}

// Not a fault that is reported: what is read before the wait is rubbish.
__global__ void reads_the_sum_too_soon(const char*, uint32_t* out, const __grid_constant__ CUtensorMap map) {
  Product p;
  start_product(p, map);
  write_product(out, p);
  wgmma_wait<0>();
}

struct Case {
  const char* name;
  void (*kernel)(const char*, uint32_t*, CUtensorMap);
  int threads = kThreads;
};
#define CASE(name) {#name, name}
const Case kCases[] = {
    CASE(right_copy),
    CASE(right_copy_beyond_the_edges),
    CASE(right_ring),
    CASE(right_product),
    CASE(multiply_s8_128),
    CASE(multiply_s8_256),
    CASE(multiply_f16_128),
    CASE(multiply_bf16_176),
    CASE(multiply_n_major_f16_64),
    CASE(multiply_n_major_bf16_64),
    CASE(multiply_n_major_f16_128),
    CASE(multiply_n_major_bf16_128),
    CASE(reads_before_the_copy_has_landed),
    CASE(waits_for_the_phase_before),
    CASE(one_thread_waits_for_all),
    CASE(expects_too_few_bytes),
    CASE(expects_too_many_bytes),
    CASE(barrier_is_not_fenced),
    CASE(nobody_made_the_barrier),
    CASE(all_arrive_for_one),
    CASE(bulk_copy_is_misaligned),
    CASE(bulk_copy_has_an_odd_size),
    CASE(bulk_copy_past_the_end),
    CASE(ends_during_a_copy),
    CASE(copies_over_what_others_read),
    CASE(copies_over_stores),
    CASE(stores_are_not_fenced),
    CASE(multiplies_before_the_copy_has_landed),
    CASE(group_has_no_fence),
    CASE(a_changes_too_soon),
    CASE(d_changes_too_soon),
    CASE(b_changes_too_soon),
    CASE(returns_before_the_wait),
    CASE(a_warp_stays_away),
    CASE(warps_disagree),
    {"wants_more_registers_than_there_are", wants_more_registers_than_there_are, 3 * kThreads},
    CASE(reads_the_sum_too_soon),
};

}  // namespace

extern "C" void run(const char* name, const char* in, uint32_t* out) {
  const CUtensorMap map = byte_matrix_map(in, kRows, 128, 128, kRows);
  for (const Case& c : kCases) {
    if (!std::strcmp(c.name, name)) launch(false, c.kernel, dim3(1), dim3(c.threads), 256 * 128 + 16, in, out, map);
  }
}
