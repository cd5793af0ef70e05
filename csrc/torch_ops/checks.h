// Checks of the ops' arguments: each error names the argument and what was expected.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cfloat>
#include <cmath>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "pybatch/types.h"

namespace pybatch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  std::ostringstream message;
  (message << ... << args);
  throw std::runtime_error(message.str());
}

#define EXPECT(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)

constexpr int64_t kAny = -1;

template <class Shape = std::initializer_list<int64_t>>
std::string shape_of(const Shape& wanted) {
  std::ostringstream out;
  const char* separator = "[";
  for (int64_t extent : wanted) {
    out << separator << (extent == kAny ? "*" : std::to_string(extent));
    separator = ", ";
  }
  out << "]";
  return out.str();
}

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << "]";
  return out.str();
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}

inline DType float_type(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: fail(name, ": expected float32, float16 or bfloat16, got ", name_of(t.scalar_type()));
  }
}

inline void expect_same_type(DType a, const char* a_name, DType b, const char* b_name) {
  EXPECT(a == b, a_name, ": expected the dtype of ", b_name);
}

template <class T>
const T* pointer(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}

inline void expect_aligned(const Tensor& t, const char* name) {
  EXPECT(reinterpret_cast<uintptr_t>(t.data_ptr()) % 64 == 0, name, ": expected data aligned to 64 bytes");
}

// A number that kernels take as float32.
inline float float32(double value, const char* name) {
  const bool fits = std::abs(value) <= FLT_MAX && (value == 0 || static_cast<float>(value) != 0);
  EXPECT(fits, name, ": expected a finite number that float32 can hold, got ", value);
  return static_cast<float>(value);
}

// Torch takes None for any tensor.
inline void expect_given(const Tensor& t, const char* name) {
  EXPECT(t.defined(), name, ": expected a tensor, got None");
}

inline int64_t storage_bytes(const Tensor& t) {
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  return bytes;
}

// From the first element to the end of the last.
inline int64_t extent_bytes(const Tensor& t) {
  if (t.numel() == 0) return 0;
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  return (last + 1) * static_cast<int64_t>(t.element_size());
}

// Checks that depend on the backend.
template <class Backend>
struct Checks {
  // t is where the kernels run, and its storage holds all of it: a storage can be resized under its tensors.
  static void expect_present(const Tensor& t, const char* name, bool (*is_there)(const Tensor&) = Backend::holds) {
    expect_given(t, name);
    EXPECT(is_there(t), name, ": expected a tensor on ", Backend::kDevice);
    const int64_t begin = t.storage_offset() * static_cast<int64_t>(t.element_size()), bytes = extent_bytes(t);
    EXPECT(bytes == 0 || begin + bytes <= storage_bytes(t), name, ": expected a storage of at least ", begin + bytes,
           " bytes, got ", storage_bytes(t));
    if (bytes > 0) Backend::uses(t, name);
  }

  // t has this dtype, this shape (kAny: any extent) and no gaps.
  template <class Shape = std::initializer_list<int64_t>>
  static void check(const Tensor& t, const char* name, ScalarType type, const Shape& shape,
                    bool (*is_there)(const Tensor&) = Backend::holds) {
    expect_present(t, name, is_there);
    EXPECT(t.scalar_type() == type, name, ": expected ", name_of(type), ", got ", name_of(t.scalar_type()));
    bool fits = t.dim() == static_cast<int64_t>(shape.size());
    for (int64_t i = 0; fits && i < t.dim(); ++i) fits = shape.begin()[i] == kAny || t.size(i) == shape.begin()[i];
    EXPECT(fits, name, ": expected shape ", shape_of(shape), ", got ", shape_of(t));
    EXPECT(t.is_contiguous(), name, ": expected a contiguous tensor");
  }

  // A 2-d tensor whose rows are contiguous but may be apart.
  static void check_rows(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    expect_present(t, name);
    EXPECT(t.dim() == 2 && (rows == kAny || t.size(0) == rows) && (width == kAny || t.size(1) == width), name,
           ": expected shape ", shape_of({rows, width}), ", got ", shape_of(t));
    EXPECT(t.size(1) <= 1 || t.stride(1) == 1, name, ": expected contiguous rows (stride 1 in the last dimension)");
    EXPECT(t.size(0) <= 1 || t.stride(0) >= t.size(1), name, ": expected rows that do not overlap");
  }

  static ConstMatrix input(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    check_rows(t, name, rows, width);
    return {t.data_ptr(), t.stride(0), float_type(t, name)};
  }

  static Matrix output(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    check_rows(t, name, rows, width);
    return {written(t), t.stride(0), float_type(t, name)};
  }

  // Where kernels write.
  template <class T = void>
  static T* written(const Tensor& t) {
    Backend::writes(t);
    return static_cast<T*>(t.data_ptr());
  }

  // A vector of n elements in the dtype of another argument.
  static const void* vector_like(const Tensor& t, const char* name, ScalarType type, int64_t n) {
    check(t, name, type, {n});
    return t.data_ptr();
  }
};

}  // namespace pybatch
