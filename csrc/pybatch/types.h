// Element types and matrices, as the binding passes them to kernels.
#pragma once

#include <cstdint>

namespace pybatch {

enum class DType : int32_t { f32, f16, bf16, i8, e4m3 };  // e4m3: float8_e4m3fn

constexpr int64_t size_of(DType t) { return t == DType::f32 ? 4 : t == DType::i8 || t == DType::e4m3 ? 1 : 2; }

// A row-major matrix; there may be gaps between its rows.
struct Matrix {
  void* data;
  int64_t row_stride;  // in elements
  DType dtype;
};

struct ConstMatrix {
  const void* data;
  int64_t row_stride;  // in elements
  DType dtype;
};

}  // namespace pybatch
