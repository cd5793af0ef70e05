// SIMT twin of csrc/cuda/launch.cuh.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <tuple>

namespace pybatch::cuda {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <class... Params, class... Args>
void launch(bool overlaps, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  using Arguments = std::tuple<Params...>;
  const Arguments arguments(static_cast<Params>(args)...);
  simt::launch({grid, block, shared_bytes, reinterpret_cast<const void*>(kernel), &arguments, sizeof(arguments),
                [](const void* function, const void* packed) {
                  std::apply(reinterpret_cast<void (*)(Params...)>(const_cast<void*>(function)),
                             *static_cast<const Arguments*>(packed));
                },
                overlaps});
}

// Always such that it may overlap with what was launched before.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  launch(true, kernel, grid, block, shared_bytes, args...);
}

inline bool takes_untried() { return true; }

// This layer runs blocks one by one.
inline int cluster_blocks(int) { return 1; }
template <class Kernel, class... Args>
void launch_clusters(int, Kernel kernel, Args... args) {
  launch(kernel, args...);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, 0));
  return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline size_t max_shared_bytes() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

}  // namespace pybatch::cuda
