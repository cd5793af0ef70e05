// Element types and matrices, as the binding passes them to kernels.
#pragma once

#include <cstdint>

namespace pybatch {

enum class DType : int32_t { f32, f16, bf16, i8, e4m3, i4 };  // e4m3: float8_e4m3fn; i4: two to a byte

constexpr int64_t size_of(DType t) { return t == DType::f32 ? 4 : t == DType::f16 || t == DType::bf16 ? 2 : 1; }

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
