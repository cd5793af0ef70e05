// A paged KV cache of any type, read element by element as pybatch/kv_cache.h lays it out.
#pragma once

#include "check.h"

namespace check {

constexpr DType kCacheTypes[] = {DType::f32, DType::f16, DType::bf16, DType::i8, DType::i4};

struct CacheShape {
  DType dtype;
  int64_t blocks, kv_heads, block_size, depth;
};

struct Cache {
  explicit Cache(CacheShape s)
      : shape(s),
        groups(s.dtype == DType::i4 ? (s.depth + kInt4Group - 1) / kInt4Group : 1),
        k(element(), stride() * s.blocks),
        v(element(), stride() * s.blocks),
        k_scale(DType::f16, scale_stride() * s.blocks),
        v_scale(DType::f16, scale_stride() * s.blocks) {}
  Cache(CacheShape s, Random& random) : Cache(s) {
    for (Array* a : {&k, &v}) {
      for (int64_t i = 0; i < a->size; ++i) {
        if (s.dtype == DType::i8) {
          a->set(i, static_cast<double>(random.below(255) - 127));
        } else if (s.dtype == DType::i4) {
          a->set(i, static_cast<double>(random.below(256) - 128));
        } else {
          a->set(i, random.number());
        }
      }
    }
    const double size = s.dtype == DType::i4 ? 0.1 : 0.01;
    for (Array* a : {&k_scale, &v_scale}) {
      for (int64_t i = 0; i < a->size; ++i) a->set(i, size * (1 + std::fabs(random.number())));
    }
  }

  CacheShape shape;
  int64_t groups;
  Array k, v, k_scale, v_scale;

  DType element() const { return shape.dtype == DType::i4 ? DType::i8 : shape.dtype; }
  int64_t stride() const {  // of a block, in elements, of i4 in bytes
    return shape.kv_heads * shape.depth * shape.block_size / (shape.dtype == DType::i4 ? 2 : 1);
  }
  int64_t scale_stride() const { return shape.kv_heads * groups * shape.block_size; }
  bool quantised() const { return shape.dtype == DType::i8 || shape.dtype == DType::i4; }

  KvCache params() {
    void *ks = quantised() ? k_scale.data() : nullptr, *vs = quantised() ? v_scale.data() : nullptr;
    return {k.data(),
            v.data(),
            ks,
            vs,
            stride(),
            stride(),
            scale_stride(),
            scale_stride(),
            shape.blocks,
            shape.kv_heads,
            shape.block_size,
            shape.depth,
            shape.dtype};
  }

  double key(int64_t block, int64_t head, int64_t offset, int64_t d) const {
    const int64_t at = block * shape.kv_heads + head, size = shape.block_size;
    if (shape.dtype == DType::i4) {
      constexpr int kPlaces[] = {0, 4, 1, 5, 2, 6, 3, 7};  // of the elements in a word
      uint32_t word;
      std::memcpy(&word, k.data() + ((at * (shape.depth / 8) + d / 8) * size + offset) * 4, 4);
      return code(word >> (4 * kPlaces[d % 8])) * k_scale[(at * groups + d / kInt4Group) * size + offset];
    }
    return k[(at * shape.depth + d) * size + offset] * (quantised() ? k_scale[at * size + offset] : 1);
  }
  double value(int64_t block, int64_t head, int64_t offset, int64_t d) const {
    const int64_t at = block * shape.kv_heads + head, size = shape.block_size;
    if (shape.dtype == DType::i4) {
      const int64_t group = d / kInt4Group, first = group * kInt4Group;
      const int64_t units = std::min(kInt4Group, shape.depth - first) / 4, e = d - first;
      const int64_t words = at * size * (shape.depth / 4);
      uint16_t word;
      std::memcpy(&word, v.data() + (words + offset / 4 * shape.depth + first + e % units * 4 + offset % 4) * 2, 2);
      return code(static_cast<uint32_t>(word) >> (4 * (e / units))) * v_scale[(at * groups + group) * size + offset];
    }
    return v[(at * size + offset) * shape.depth + d] * (quantised() ? v_scale[at * size + offset] : 1);
  }

  // By how much a cached element may differ from x, where its scale comes from elements of magnitude `most`.
  double error(double x, double most) const {
    if (shape.dtype == DType::i8) return most / 127 * 0.51;
    if (shape.dtype == DType::i4) return most / 8 * 1.02;  // codes reach from -8 to 7
    return std::fabs(x) * rounding(shape.dtype) + 1e-7;
  }
  // The elements that share a scale with element d: [first, end).
  int64_t first_of_scale(int64_t d) const { return shape.dtype == DType::i4 ? d / kInt4Group * kInt4Group : 0; }
  int64_t end_of_scale(int64_t d) const {
    return shape.dtype == DType::i4 ? std::min(first_of_scale(d) + kInt4Group, shape.depth) : shape.depth;
  }

  void add_to(Digest& digest) const {
    for (const Array* a : {&k, &v, &k_scale, &v_scale}) digest.add(*a);
  }

 private:
  static double code(uint32_t bits) { return static_cast<double>(static_cast<int32_t>(bits << 28) >> 28); }
};

}  // namespace check
