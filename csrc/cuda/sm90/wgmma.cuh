// What wgmma reads from shared memory.
#pragma once

#include "cuda/ptx.cuh"

namespace pybatch::cuda {

// The descriptor of a B operand whose columns are rows of 128 bytes along K, as a tensor copy with 128-byte swizzle
// leaves them from a multiple of 1024 bytes on (PTX ISA, "Matrix descriptor"). A product's K is 32 bytes of each row:
// `rows` points at the first row's.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* rows) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return (shared_address(rows) & 0x3ffff) >> 4 | kEightRows << 32 | kSwizzle128 << 62;
}

// The same for 16-bit types where columns are side by side (kNMajor): a row of K is 128 bytes, 64 columns. A product's
// K is sixteen rows from `rows` on, a multiple of 1024 bytes; its next 64 columns, if any, lie `next_columns` bytes on.
__device__ __forceinline__ uint64_t wgmma_descriptor_n_major(const void* rows, uint64_t next_columns) {
  return wgmma_descriptor(rows) | next_columns >> 4 << 16;
}

}  // namespace pybatch::cuda
