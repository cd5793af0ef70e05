// A ring of stages in shared memory, filled and emptied by different warps.
#pragma once

#include "cuda/sm90/ptx.cuh"

namespace pybatch::cuda {

constexpr int kWarpgroup = 128;  // threads

// The stage that a warp is at, and how often it has been there.
template <int kStages>
struct Turn {
  uint32_t stage = 0, round = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, ++round;
  }
};

__device__ __forceinline__ void wait_for(uint64_t* barrier, uint32_t phase) {
  while (!mbarrier_try_wait_parity(barrier, phase % 2)) {
  }
}

// All lanes of a warp call together; the barrier counts warps.
__device__ __forceinline__ void arrive_as_warp(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}

}  // namespace pybatch::cuda
