// Small kernels, each with one fault or none, for test_layer.py. All take (in, out, n) and run as blocks of 64 threads.
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace {

using namespace pybatch::cuda;

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
__device__ __forceinline__ int neighbour() { return (thread() + 1) % 64; }

// ---- global memory ----

__global__ void reads_past_the_end(const float* in, float* out, int) { out[thread()] = in[thread() + 1]; }

__global__ void reads_before_the_start(const float* in, float* out, int) { out[thread()] = in[thread() - 1]; }

__global__ void reads_far_away(const float* in, float* out, int) { out[thread()] = in[1 << 20]; }

__global__ void writes_an_input(const float* in, float*, int) { const_cast<float*>(in)[thread()] = 1; }

__global__ void vector_load_is_misaligned(const float* in, float* out, int) {
  out[thread()] = static_cast<float>(load_global_16(in + thread()).x);
}

__global__ void struct_load_is_misaligned(const float* in, float* out, int) {
  float4 v = *reinterpret_cast<const float4*>(in + 1);
  out[thread()] = v.x + v.y + v.z + v.w;
}

__global__ void leaves_a_local_array(const float* in, float* out, int n) {
  float local[4] = {in[0], in[1], in[2], in[3]};
  out[thread()] = local[(thread() + n) % 5];
}

__global__ void points_past_a_local_array(const float* in, float* out, int n) {
  float local[4];
  float* end = local + 4;
  for (int i = 0; i < 4; ++i) local[i] = in[thread()];
  end[n > 0] = in[0];
  out[thread()] = local[n % 4];
}

// Only AddressSanitizer sees this one: where the access is, nothing tells which array it is in.
__device__ __attribute__((noinline)) float sum(const float* values, int n) {
  float total = 0;
  for (int i = 0; i < n; ++i) total += values[i];
  return total;
}

__global__ void reads_past_a_local_array_elsewhere(const float* in, float* out, int) {
  float local[4] = {in[0], in[1], in[2], in[3]};
  out[thread()] = sum(local, 5);
}

__global__ void shifts_too_far(const float*, float* out, int n) {
  out[thread()] = static_cast<float>(1 << (n + thread()));
}

__global__ void divides_by_zero(const float*, float* out, int n) { out[thread()] = static_cast<float>(n / thread()); }

__global__ void adds_too_much(const float*, float* out, int n) {
  out[thread()] = static_cast<float>(0x7fffff00 + thread() * n);
}

// ---- shared memory: 64 floats ----

__global__ void leaves_shared_memory(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  shared[thread() + 1] = in[thread()];
  __syncthreads();
  out[thread()] = shared[thread() + 1];
}

__global__ void reads_what_nothing_wrote(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  if (thread() < 63) shared[thread()] = in[thread()];
  __syncthreads();
  out[thread()] = shared[thread()];
}

__global__ void reads_without_a_barrier(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  shared[thread()] = in[thread()];
  out[thread()] = shared[neighbour()];
}

__global__ void writes_again_without_a_barrier(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  shared[thread()] = in[thread()];
  __syncthreads();
  float other = shared[neighbour()];
  shared[thread()] = other + 1;
  out[thread()] = other;
}

__global__ void two_threads_write_one_place(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  shared[thread() / 2] = in[thread()];
  __syncthreads();
  out[thread()] = shared[thread() / 2];
}

// A barrier of the warp orders nothing between warps: lane 31 reads what the other warp writes.
__global__ void orders_only_the_warp(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  shared[thread()] = in[thread()];
  __syncwarp();
  out[thread()] = shared[neighbour()];
}

// A shuffle is no barrier for memory.
__global__ void shuffles_for_a_barrier(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  shared[thread()] = in[thread()];
  float x = __shfl_xor_sync(~0u, 0.0f, 1);
  out[thread()] = shared[thread() ^ 1] + x;
}

__global__ void atomic_meets_plain(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  if (thread() == 0) shared[0] = 0;
  __syncthreads();
  atomicAdd(shared, in[thread()]);
  out[thread()] = *shared;
}

// ---- barriers ----

__global__ void barriers_differ(const float* in, float* out, int) {
  if (thread() < 32) {
    out[thread()] = in[thread()];
    __syncthreads();
  } else {
    __syncthreads();
    out[thread()] = in[thread()];
  }
}

__global__ void some_return_early(const float* in, float* out, int) {
  if (thread() >= 60) return;
  __syncthreads();
  out[thread()] = in[thread()];
}

__global__ void barrier_waits_for_too_many(const float* in, float* out, int) {
  if (thread() < 32) named_barrier_sync(1, 64);
  out[thread()] = in[thread()];
}

__global__ void wait_crosswise(const float* in, float* out, int) {
  if (thread() < 32) {
    named_barrier_sync(1, 64);
    named_barrier_sync(2, 64);
  } else {
    named_barrier_sync(2, 64);
    named_barrier_sync(1, 64);
  }
  out[thread()] = in[thread()];
}

__global__ void barrier_counts_differ(const float* in, float* out, int) {
  named_barrier_sync(1, thread() < 32 ? 64 : 32);
  out[thread()] = in[thread()];
}

__global__ void lanes_disagree(const float* in, float* out, int) {
  float x = in[thread()];
  if (thread() % 2) {
    x = __shfl_xor_sync(~0u, x, 2);
  } else {
    x = __shfl_down_sync(~0u, x, 2);
  }
  out[thread()] = x;
}

__global__ void mask_names_the_departed(const float* in, float* out, int) {
  if (thread() % 32 == 31) return;
  out[thread()] = __shfl_sync(~0u, in[thread()], 0);
}

__global__ void lane_is_not_in_its_mask(const float* in, float* out, int) {
  out[thread()] = __shfl_sync(0xffff, in[thread()], 0);
}

// ---- asynchronous copies: 64 threads copy 4 bytes each ----

__global__ void never_waits(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  cp_async_4(shared + thread(), in + thread(), true);
  cp_async_commit();
  out[thread()] = shared[thread()];
}

__global__ void waits_for_the_group_before(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  cp_async_4(shared + thread(), in + thread(), true);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  out[thread()] = shared[neighbour()];
}

__global__ void never_commits(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  cp_async_4(shared + thread(), in + thread(), true);
  cp_async_wait<0>();
  __syncthreads();
  out[thread()] = shared[neighbour()];
}

__global__ void waits_without_a_barrier(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  cp_async_4(shared + thread(), in + thread(), true);
  cp_async_commit();
  cp_async_wait<0>();
  out[thread()] = shared[neighbour()];
}

__global__ void refills_while_others_read(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  cp_async_4(shared + thread(), in + thread(), true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[thread()] = shared[neighbour()];
  cp_async_4(shared + thread(), in + thread(), true);
  cp_async_commit();
  cp_async_wait<0>();
}

__global__ void copies_past_the_end(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  if (thread() < 16) cp_async_16(shared + 4 * thread(), in + 4 * thread() + 4, true);
  cp_async_commit();
  out[thread()] = 0;
}

__global__ void copy_is_misaligned(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  if (thread() == 0) cp_async_16(shared + 1, in, true);
  out[thread()] = 0;
}

// ---- no fault: out[i] = in[(i + 1) % 64] in each of them ----

__global__ void right_with_barriers(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  for (int round = 0; round < 3; ++round) {
    shared[thread()] = in[thread()];
    __syncthreads();
    out[thread()] = shared[neighbour()];
    __syncthreads();
  }
}

// The second warp makes what the first one takes, each at its own barriers.
__global__ void right_with_named_barriers(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  for (int round = 0; round < 3; ++round) {
    if (thread() >= 32) {
      for (int i = thread() - 32; i < 64; i += 32) shared[i] = in[i];
      named_barrier_sync(1, 64);
      named_barrier_sync(2, 64);
    } else {
      named_barrier_sync(1, 64);
      for (int i = thread(); i < 64; i += 32) out[i] = shared[(i + 1) % 64];
      named_barrier_sync(2, 64);
    }
  }
}

__global__ void right_within_warps(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  int warp = thread() / 32 * 32;
  for (int round = 0; round < 3; ++round) {
    shared[thread()] = in[neighbour()];
    __syncwarp();
    out[thread()] = shared[warp + (thread() + 5) % 32];
    __syncwarp();
    shared[warp + (thread() + 7) % 32] = out[thread()];
    __syncwarp();
    out[warp + (thread() + 5) % 32] = shared[warp + (thread() + 7) % 32];
    __syncwarp();
  }
}

__global__ void right_with_async_copies(const float* in, float* out, int) {
  float* shared = dynamic_shared<float>();
  if (thread() < 14) cp_async_16(shared + 4 * thread(), in + 4 * thread(), true);
  cp_async_commit();
  if (thread() == 0) cp_async_16(shared + 60, in + 60, true);
  if (thread() == 1) cp_async_16(shared + 56, in + 1000000, false);  // zeros, and what is not valid is not read
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  if (thread() == 1) {
    for (int i = 56; i < 60; ++i) shared[i] = in[i] + shared[i];
  }
  __syncthreads();
  out[thread()] = shared[neighbour()];
}

__global__ void right_with_atomics(const float* in, float* out, int) {
  int* shared = dynamic_shared<int>();
  if (thread() == 0) shared[0] = 0;
  __syncthreads();
  atomicAdd(shared, 1);
  __syncthreads();
  out[thread()] = shared[0] == 64 ? in[neighbour()] : -1;
}

__global__ void reads_before_it_waits(const float* in, float* out, int) {
  const float x = in[thread()];
  griddepcontrol_wait();
  out[thread()] = x;
}

__global__ void writes_before_it_waits(const float*, float* out, int) {
  out[thread()] = 0;
  griddepcontrol_wait();
}

__global__ void copies_before_it_waits(const float* in, float*, int) {
  cp_async_4(dynamic_shared<float>() + thread(), in + thread(), true);
  griddepcontrol_wait();
}

__global__ void some_return_without_waiting(const float* in, float* out, int) {
  if (thread() == 63) return;
  griddepcontrol_wait();
  out[thread()] = in[thread()];
}

__global__ void right_behind_the_wait(const float* in, float* out, int n) {
  griddepcontrol_launch_dependents();
  griddepcontrol_wait();
  out[thread()] = in[(thread() + 1) % n];
}

// Two blocks write every other element, and the last to come turns them all. out[0] is the counter: a NaN, and then one
// with the next bits.
template <bool kReleases, bool kCounts, bool kAcquires>
__device__ void hand_over(const float* in, float* out) {
  int* before = dynamic_shared<int>();
  if (thread() > 0 && thread() % 2 == static_cast<int>(blockIdx.x)) out[thread()] = in[thread()];
  if (kReleases) __threadfence();
  __syncthreads();
  if (thread() == 0) *before = kCounts ? atomicAdd(reinterpret_cast<int*>(out), 1) : 0x7fc00001;
  __syncthreads();
  if (kAcquires) __threadfence();
  if (*before != 0x7fc00001) return;
  const float x = thread() == 63 ? in[0] : out[neighbour()];
  __syncthreads();
  out[thread()] = x;
}
__global__ void hands_over_without_a_release(const float* in, float* out, int) { hand_over<false, true, true>(in, out); }
__global__ void hands_over_without_an_atomic(const float* in, float* out, int) { hand_over<true, false, true>(in, out); }
__global__ void hands_over_without_an_acquire(const float* in, float* out, int) { hand_over<true, true, false>(in, out); }
__global__ void right_from_block_to_block(const float* in, float* out, int) { hand_over<true, true, true>(in, out); }

struct Case {
  const char* name;
  void (*kernel)(const float*, float*, int);
  bool overlaps = false;  // with kernels launched before
  unsigned blocks = 1;
};
#define CASE(name) {#name, name}
constexpr Case kCases[] = {
    CASE(reads_past_the_end),
    CASE(reads_before_the_start),
    CASE(reads_far_away),
    CASE(writes_an_input),
    CASE(vector_load_is_misaligned),
    CASE(struct_load_is_misaligned),
    CASE(leaves_a_local_array),
    CASE(points_past_a_local_array),
    CASE(reads_past_a_local_array_elsewhere),
    CASE(shifts_too_far),
    CASE(divides_by_zero),
    CASE(adds_too_much),
    CASE(leaves_shared_memory),
    CASE(reads_what_nothing_wrote),
    CASE(reads_without_a_barrier),
    CASE(writes_again_without_a_barrier),
    CASE(two_threads_write_one_place),
    CASE(orders_only_the_warp),
    CASE(shuffles_for_a_barrier),
    CASE(atomic_meets_plain),
    CASE(barriers_differ),
    CASE(some_return_early),
    CASE(barrier_waits_for_too_many),
    CASE(wait_crosswise),
    CASE(barrier_counts_differ),
    CASE(lanes_disagree),
    CASE(mask_names_the_departed),
    CASE(lane_is_not_in_its_mask),
    CASE(never_waits),
    CASE(waits_for_the_group_before),
    CASE(never_commits),
    CASE(waits_without_a_barrier),
    CASE(refills_while_others_read),
    CASE(copies_past_the_end),
    CASE(copy_is_misaligned),
    {"reads_before_it_waits", reads_before_it_waits, true},
    {"writes_before_it_waits", writes_before_it_waits, true},
    {"copies_before_it_waits", copies_before_it_waits, true},
    {"some_return_without_waiting", some_return_without_waiting, true},
    {"right_behind_the_wait", right_behind_the_wait, true},
    {"hands_over_without_a_release", hands_over_without_a_release, false, 2},
    {"hands_over_without_an_atomic", hands_over_without_an_atomic, false, 2},
    {"hands_over_without_an_acquire", hands_over_without_an_acquire, false, 2},
    {"right_from_block_to_block", right_from_block_to_block, false, 2},
    CASE(right_with_barriers),
    CASE(right_with_named_barriers),
    CASE(right_within_warps),
    CASE(right_with_async_copies),
    CASE(right_with_atomics),
};

}  // namespace

extern "C" void run(const char* name, const float* in, float* out, int n) {
  for (const Case& c : kCases) {
    if (!std::strcmp(c.name, name)) launch(c.overlaps, c.kernel, dim3(c.blocks), dim3(64), 64 * sizeof(float), in, out, n);
  }
}
