// Checks of the ops' arguments: each error names the argument and what was expected.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

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

inline std::string shape_of(std::initializer_list<int64_t> wanted) {
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

template <class T>
T* mutable_pointer(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline void expect_aligned(const Tensor& t, const char* name) {
  EXPECT(reinterpret_cast<uintptr_t>(t.data_ptr()) % 64 == 0, name, ": expected data aligned to 64 bytes");
}

// The checks that ask the backend where tensors may be.
template <class Backend>
struct Checks {
  // How many of n values the host looks at.
  static int64_t visible(int64_t n) { return Backend::kHostReadable ? n : 0; }

  // t has this dtype, this shape (kAny: any extent) and no gaps.
  static void check(const Tensor& t, const char* name, ScalarType type, std::initializer_list<int64_t> shape,
                    bool (*is_there)(const Tensor&) = Backend::holds) {
    EXPECT(is_there(t), name, ": expected a tensor on ", Backend::kDevice);
    EXPECT(t.scalar_type() == type, name, ": expected ", name_of(type), ", got ", name_of(t.scalar_type()));
    bool fits = t.dim() == static_cast<int64_t>(shape.size());
    for (int64_t i = 0; fits && i < t.dim(); ++i) fits = shape.begin()[i] == kAny || t.size(i) == shape.begin()[i];
    EXPECT(fits, name, ": expected shape ", shape_of(shape), ", got ", shape_of(t));
    EXPECT(t.is_contiguous(), name, ": expected a contiguous tensor");
  }

  // A 2-d tensor whose rows are contiguous but may be apart.
  static void check_rows(const Tensor& t, const char* name, int64_t rows, int64_t width) {
    EXPECT(Backend::holds(t), name, ": expected a tensor on ", Backend::kDevice);
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
    return {t.data_ptr(), t.stride(0), float_type(t, name)};
  }

  // A vector of n elements in the dtype of another argument.
  static const void* vector_like(const Tensor& t, const char* name, ScalarType type, int64_t n) {
    check(t, name, type, {n});
    return t.data_ptr();
  }

  static void expect_ids_in_range(const Tensor& ids, const char* name, int64_t limit) {
    const int64_t* id = pointer<int64_t>(ids);
    for (int64_t i = 0, n = visible(ids.numel()); i < n; ++i) {
      EXPECT(id[i] >= 0 && id[i] < limit, name, ": expected ids in [0, ", limit, "), got ", id[i], " at ", i);
    }
  }
};

}  // namespace pybatch
