#include "pybatch/embedding.h"

#include "cpu/gguf_blocks.h"
#include "cpu/vec.h"
#include "pybatch/matmul.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// Each reader below gives the n <= kLanes elements of a table row from column i on; the other lanes are zero.

template <class T>
struct Rows {
  const T* row;
  Rows(const EmbeddingParams& p, int64_t id) : row(static_cast<const T*>(p.table) + id * p.width) {}
  F32x16 at(int64_t i, int64_t n) const { return load_first(row + i, n); }
};

template <class T>
struct Packed {
  static constexpr int64_t kGroup = 4 / sizeof(T);
  const char* column;
  Packed(const EmbeddingParams& p, int64_t id)
      : column(reinterpret_cast<const char*>(static_cast<const T*>(p.table) + packed_at(id, 0, p.width, sizeof(T)))) {}
  F32x16 at(int64_t i, int64_t n) const {
    T values[kLanes] = {};
    for (int64_t j = 0; j < n; j += kGroup) std::memcpy(values + j, column + (i + j) / kGroup * kPanel * 4, 4);
    return load(values);
  }
};

struct PackedInt8 : Packed<int8_t> {
  F32x16 scale;
  PackedInt8(const EmbeddingParams& p, int64_t id) : Packed(p, id), scale(broadcast(p.scale[id])) {}
  F32x16 at(int64_t i, int64_t n) const { return Packed::at(i, n) * scale; }
};

struct PackedFloat8 : PackedInt8 {
  using PackedInt8::PackedInt8;
  F32x16 at(int64_t i, int64_t n) const {
    int32_t bytes[kLanes] = {};
    for (int64_t j = 0; j < n; ++j) bytes[j] = column[(i + j) / kGroup * kPanel * 4 + (i + j) % kGroup];
    return float8(load_ints(bytes), 0) * scale;
  }
};

struct PackedBlocks {  // a vector's columns have one scale
  const char* column;
  F32x16 scale;
  PackedBlocks(const EmbeddingParams& p, int64_t id)
      : column(static_cast<const char*>(p.table) + id / kPanel * panel_bytes(p.width, 1, true) + id % kPanel * 4),
        scale(broadcast(p.scale[id])) {}
  F32x16 at(int64_t i, int64_t n) const {
    const char* block = column + i / kBlockK * kBlockBytes;
    int32_t bytes[kLanes] = {};
    for (int64_t j = 0; j < n; ++j) bytes[j] = block[(i % kBlockK + j) / 4 * kPanel * 4 + (i + j) % 4];
    float of_block;
    std::memcpy(&of_block, block + kBlockCodes, sizeof of_block);
    return float8(load_ints(bytes), 0) * broadcast(of_block) * scale;
  }
};

template <class Type>
struct PackedGguf {
  const char* groups;
  int64_t lane;
  PackedGguf(const EmbeddingParams& p, int64_t id)
      : groups(static_cast<const char*>(p.table) + id / kPanel * (p.width / Type::kWeights) * kPanel * Type::kBytes),
        lane(id % kPanel) {}
  float lane_of(F32x16 a) const {
    float values[kLanes];
    store(values, a);
    return values[lane];
  }
  F32x16 at(int64_t i, int64_t) const {
    int step = static_cast<int>(i % Type::kWeights / 32), half = static_cast<int>(i % 32 / kLanes);
    const Unpacked w = Type::unpack(groups + i / Type::kWeights * kPanel * Type::kBytes, step);
    using Byte = std::conditional_t<Type::kMaxCode == 255 && Type::kOffset == 0, int8_t, uint8_t>;
    int32_t words[kLanes];
    Byte codes[kLanes];
    float values[kLanes];
    for (int j = 0; j < 4; ++j) {
      store(words, w.codes[half * 4 + j]);
      std::memcpy(codes + 4 * j, words + lane, 4);
    }
    for (int j = 0; j < kLanes; ++j) values[j] = static_cast<float>(codes[j] - Type::kOffset);
    F32x16 value = load(values) * broadcast(lane_of(w.scale[Type::kScales == 1 ? 0 : half]));
    if constexpr (Type::kMins > 0) value = value + broadcast(lane_of(w.min[Type::kMins == 1 ? 0 : half]));
    return value;
  }
};

template <class Row>
void gather(const EmbeddingParams& p) {
  with_float_type(p.out.dtype, [&]<class T>(T*) {
    parallel_for(p.count, 1 + 8192 / (p.width + 1), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const Row row(p, p.ids[token]);
        const F32x16 multiplier = broadcast(p.multiplier);
        T* out = static_cast<T*>(p.out.data) + token * p.out.row_stride;
        for (int64_t i = 0; i < p.width; i += kLanes) {
          int64_t n = p.width - i < kLanes ? p.width - i : kLanes;
          store_first(out + i, row.at(i, n) * multiplier, n);
        }
      }
    });
  });
}

}  // namespace

void embedding(const EmbeddingParams& p) {
  switch (p.layout) {
    case TableLayout::rows: return with_float_type(p.table_dtype, [&]<class T>(T*) { gather<Rows<T>>(p); });
    case TableLayout::packed_dense: return with_float_type(p.table_dtype, [&]<class T>(T*) { gather<Packed<T>>(p); });
    case TableLayout::packed_scaled:
      return p.table_dtype == DType::e4m3 ? gather<PackedFloat8>(p) : gather<PackedInt8>(p);
    case TableLayout::packed_blocks: return gather<PackedBlocks>(p);
    case TableLayout::packed_gguf:
      return with_gguf_type(p.gguf_type,
                            [&](auto* type) { gather<PackedGguf<std::remove_pointer_t<decltype(type)>>>(p); });
  }
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
