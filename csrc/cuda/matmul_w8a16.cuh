// The matmul of 8-bit weights that are widened to the type of x: a source of its own for each kind of them.
#pragma once

#include "cuda/matmul_kernel.cuh"
#include "cuda/matmul_simple.cuh"
#include "cuda/sm90/matmul.cuh"

namespace pybatch::cuda {

template <class W, auto& kHopper, bool kInBlocks = false>
void matmul_widened(const MatmulParams& p, cudaStream_t stream) {
  with_float_type(p.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same_v<T, float>) {
      simple_matmul<W, kInBlocks>(p, stream);
    } else {
      if (for_hopper(p)) return kHopper(p, stream);
      matmul<WidenedWeights<T, W, kInBlocks>>(p, nullptr, stream);
    }
  });
}

}  // namespace pybatch::cuda
