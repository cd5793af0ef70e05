// What Hopper does on the side (PTX ISA 8.5): barriers that count threads and bytes, bulk and tensor copies, and wgmma.
#pragma once

#include <cuda.h>

#include "simt/numbers.h"
#include "simt/runtime.h"

namespace simt {

void mbarrier_init(uint64_t* barrier, uint32_t count, Location);
void mbarrier_arrive(uint64_t* barrier, uint32_t expected_bytes, Location);
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Location);  // until the phase of that parity has ended
void fence_proxy_async();

// Copies land one by one, each when no thread of the block can do anything else: the last moment that is allowed.
void bulk_copy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier, Location);
void tensor_copy(void* shared, const CUtensorMap&, int32_t x, int32_t y, uint64_t* barrier, Location);

// d += a * b for 64 x n and 32 bytes of K, b by its descriptor. Shared memory and a are read, and d is
// written, when the group is waited for; till then d holds rubbish. Every group has to begin with a fence (the ISA asks
// for one only where registers have been touched, which this layer cannot see).
void wgmma_fence(Location);
void wgmma_s8(int32_t* d, int n, const uint32_t* a, uint64_t descriptor, bool accumulate, Location);
void wgmma_float(float* d, Format, int n, const uint32_t* a, uint64_t descriptor, bool n_major, bool accumulate,
                 Location);
void wgmma_commit(Location);
void wgmma_wait(unsigned groups_left, Location);

void set_registers(const char* name, unsigned count, Location);

}  // namespace simt
