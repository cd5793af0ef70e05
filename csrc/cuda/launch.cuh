// Kernel launches and device queries. tests/simt has a host twin of this file.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace pybatch::cuda {

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Whether to take kernels that no chip has run yet, as PYBATCH_UNTRIED=1 asks; tests/simt, which has shown them right,
// always does.
inline bool takes_untried() {
  static const bool asked = [] {
    const char* value = std::getenv("PYBATCH_UNTRIED");
    return value != nullptr && std::string(value) == "1";
  }();
  return asked;
}

// Whether a kernel's blocks may start while those of the one before it in the stream end (programmatic dependent
// launch): they wait in begin_kernel(). Untried.
inline bool overlaps_launches() { return takes_untried() && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9; }

// How many blocks a cluster has of those wanted. Clusters are untried, on tests/simt too, which runs blocks one by one.
inline int cluster_blocks(int wanted) { return takes_untried() ? wanted : 1; }

// What a block has of shared memory without asking is less.
template <class... Params>
void ask_for_shared(void (*kernel)(Params...), size_t bytes) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (bytes <= kWithoutAsking) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// Runs kernel(args...) on the grid, with this much dynamic shared memory, in clusters of so many blocks, which divide
// grid.x.
template <class... Params, class... Args>
void launch_clusters(int cluster, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                     cudaStream_t stream, Args... args) {
  ask_for_shared(kernel, shared_bytes);
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = overlaps_launches() ? 2 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// The same block by block; the grid may be empty.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (overlaps_launches()) return launch_clusters(1, kernel, grid, block, shared_bytes, stream, args...);
  ask_for_shared(kernel, shared_bytes);
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  check_cuda(cudaGetLastError());
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// The largest dynamic shared memory of a block.
inline size_t max_shared_bytes() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

}  // namespace pybatch::cuda
