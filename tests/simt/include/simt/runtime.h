// What the device headers of this folder ask of the SIMT runtime (src/): the position of the calling thread, its
// synchronisation, its shared memory, and launches. Each CUDA thread is a fiber; a block's fibers share one OS thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <tuple>

#include "simt/types.h"

namespace simt {

using Location = std::source_location;

// ---- where am I ----
uint3 thread_index();
uint3 block_index();
dim3 block_dim();
dim3 grid_dim();
unsigned lane();

// ---- synchronisation ----
void sync_block(Location);
void named_barrier(int id, int threads, Location);
void sync_warp(unsigned mask, Location);  // orders memory among the lanes of mask

// A warp-wide instruction: every lane of `mask` calls it with the same `name`; once all have come, apply() runs once
// over the lanes' operands (those outside the mask are null). Like the instructions themselves it orders no memory.
using Apply = void (*)(void* const operands[32], unsigned mask);
void collective(unsigned mask, const char* name, void* operand, Apply apply, Location);

// The .sync.aligned instructions: all 32 lanes.
inline void aligned(const char* name, void* operand, Apply apply, Location at) {
  collective(~0u, name, operand, apply, at);
}

// `value` of lane `source`, or the own one if source is negative. What a lane outside the mask holds is undefined.
uint64_t exchange(unsigned mask, uint64_t value, int source, const char* name, Location);
// Orders what the thread has done in global memory before, for other blocks, ahead of what it does behind.
void fence();
// Bit i: the predicate of lane i.
unsigned vote(unsigned mask, bool predicate, const char* name, Location);

// In a launch that may overlap with those before it, a thread has to call this before it touches global memory.
void wait_for_kernels_before();

// ---- memory ----
void* shared_memory();
uint32_t shared_address(const void*);  // in the shared window
// Checks an access of the calling thread as an access by a kernel is checked: bounds, alignment, races.
void check_read(const void* p, size_t bytes, const char* what);
void check_write(void* p, size_t bytes, const char* what);
void check_atomic(void* p, size_t bytes);
void check_alignment(const void* p, size_t alignment, const char* what);

// cp.async: the copy lands when its group is waited for, the last moment that the program allows, or never.
void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes);
void async_commit();
void async_wait(unsigned groups_left);

// ---- the device ----
int compute_capability();  // 86 for 8.6, unless a test has asked for another
size_t max_shared_bytes();  // of a block
void* driver_function(const char* symbol);  // null: there is none

// ---- launches ----
struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  const void* kernel;
  const void* arguments;
  size_t arguments_bytes;
  void (*call)(const void* kernel, const void* arguments);
  bool overlaps = false;  // with the launches before it: programmatic dependent launch
};
void launch(const Launch&);

}  // namespace simt
