#pragma once

#include <cstdint>

namespace pybatch {

constexpr int64_t kMaxHeadDim = 512;  // that kernels have room for; a multiple of 8

}  // namespace pybatch
