// Checks of weights as pybatch/matmul.h packs them.
#pragma once

#include <utility>
#include <vector>

#include "pybatch/matmul.h"
#include "torch_ops/checks.h"

namespace pybatch {

template <class Backend>
struct PackedWeights : Checks<Backend> {
  using Checks<Backend>::check;

  // Packed weights: of one matrix, or where experts is not 0 of a stack of them.
  static void check_packed(const Tensor& weight, const char* name, ScalarType type, int64_t experts,
                           std::vector<int64_t> shape) {
    if (experts != 0) shape.insert(shape.begin(), experts);
    check(weight, name, type, shape);
    expect_aligned(weight, name);
  }

  static void check_packed_dense(const Tensor& weight, const char* name, int64_t n, int64_t k, int64_t experts = 0) {
    const int64_t panels = (n + kPanel - 1) / kPanel, bytes = weight.element_size(), groups = packed_groups(k, bytes);
    std::vector<int64_t> shape{panels, groups, kPanel};
    if (bytes != 4) shape.push_back(4 / bytes);
    check_packed(weight, name, weight.scalar_type(), experts, std::move(shape));
  }

  // float8: whether weights may be that, too, where they may also be in blocks. Returns which they are.
  static DType check_packed_bytes(const Tensor& weight, const char* name, bool float8, int64_t n, int64_t k,
                                  int64_t experts = 0) {
    const bool is_float8 = float8 && weight.defined() && weight.scalar_type() == ScalarType::Float8_e4m3fn;
    if (is_float8 && in_blocks(weight, experts)) {
      const int64_t panels = (n + kPanel - 1) / kPanel, blocks = (k + kBlockK - 1) / kBlockK;
      check_packed(weight, name, ScalarType::Float8_e4m3fn, experts, {panels, blocks, kBlockK / 4 + 1, kPanel, 4});
      return DType::e4m3;
    }
    check_packed(weight, name, is_float8 ? ScalarType::Float8_e4m3fn : ScalarType::Char, experts,
                 {(n + kPanel - 1) / kPanel, packed_groups(k, 1), kPanel, 4});
    return is_float8 ? DType::e4m3 : DType::i8;
  }

  static bool in_blocks(const Tensor& weight, int64_t experts = 0) {
    return weight.defined() && weight.dim() == 5 + (experts != 0);
  }

  // Packed blocks of a GGUF file's weights; the bytes of a group, and their dtype, tell their type.
  static GgufType gguf_type(const Tensor& weight, const char* name, int64_t n, int64_t k, int64_t experts = 0) {
    const bool code_book = weight.defined() && weight.scalar_type() == ScalarType::Char;
    const ScalarType dtype = code_book ? ScalarType::Char : ScalarType::Byte;
    check_packed(weight, name, dtype, experts, {kAny, kAny, kAny});
    const int64_t group_bytes = weight.size(weight.dim() - 1);
    for (const GgufBlock& block : kGgufBlocks) {
      if (group_bytes != kPanel * block.bytes || block.code_book != code_book) continue;
      EXPECT(k % block.weights == 0, name, ": expected a multiple of ", block.weights, " weights a column for ",
             block.name, ", got ", k);
      check_packed(weight, name, dtype, experts, {(n + kPanel - 1) / kPanel, k / block.weights, kPanel * block.bytes});
      return static_cast<GgufType>(&block - kGgufBlocks);
    }
    std::ostringstream known;
    const char* separator = "";
    for (const GgufBlock& block : kGgufBlocks) {
      if (block.code_book != code_book) continue;
      known << separator << kPanel * block.bytes << " (" << block.name << ")";
      separator = ", ";
    }
    fail(name, ": expected a last extent of ", known.str(), ", got ", group_bytes);
  }
};

}  // namespace pybatch
