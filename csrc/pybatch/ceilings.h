// The processor's peak rates, to compare kernels against.
#pragma once

#include <cstdint>

#include "pybatch/isa.h"

namespace pybatch {

// int8 operations are the multiplies and adds of the dot product that the int8 matmul uses; copied bytes count twice,
// once read and once written.
enum class Ceiling { fp32_flops, int8_ops, read_bytes, copy_bytes };

// Per second, on all threads together: the median of the short runs that fit in `seconds`. Keeps 512 MiB for the next
// call.
PYBATCH_EXPORT double measure_ceiling(Ceiling ceiling, double seconds);

// One thread's loop, which saturates a single resource.
struct CeilingLoopParams {
  Ceiling ceiling;
  int64_t rounds;   // fp32_flops, int8_ops
  const char* src;  // read_bytes, copy_bytes
  char* dst;        // copy_bytes
  int64_t bytes;    // at src and dst, a multiple of 1024
  double* done;     // out: operations or bytes done
};

}  // namespace pybatch
