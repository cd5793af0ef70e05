// What writes, turns, copies and gathers cached keys and values.
#include "cache.h"

namespace check {
namespace {

std::vector<double> rotated(std::vector<double> x, const Array& rotary, int64_t row, int64_t rotary_dim,
                            bool interleaved) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    double& a = x[static_cast<size_t>(interleaved ? 2 * i : i)];
    double& b = x[static_cast<size_t>(interleaved ? 2 * i + 1 : i + half)];
    const double c = rotary[row * rotary_dim + i], s = rotary[row * rotary_dim + half + i], first = a * c - b * s;
    b = b * c + a * s;
    a = first;
  }
  return x;
}

double largest(const std::vector<double>& x, int64_t begin, int64_t end) {
  double most = 0;
  for (int64_t i = begin; i < end; ++i) most = std::max(most, std::fabs(x[static_cast<size_t>(i)]));
  return most;
}

void check_rope_kv_write(CacheShape shape, DType dtype, bool normed, bool interleaved, Random& random) {
  constexpr int64_t kTokens = 9, kHeads = 4;
  const int64_t depth = shape.depth, rotary_dim = interleaved ? depth / 2 : depth;
  const int64_t q_width = kHeads * depth, k_width = shape.kv_heads * depth, width = q_width + 2 * k_width;
  // With a norm and pairs side by side it also is LayerNorm, after the rotation, and queries are scaled.
  const bool last = normed && interleaved;
  const Array q(dtype, kTokens * q_width, random), k(dtype, kTokens * k_width, random, 2),
      v(dtype, kTokens * k_width, random), weight(dtype, depth, random);
  Array rotary(DType::f32, 20 * rotary_dim);
  for (int64_t i = 0; i < rotary.size; ++i) rotary.set(i, random.uniform());
  std::vector<int64_t> positions, slots;
  for (int64_t t = 0; t < kTokens; ++t) {
    positions.push_back(random.below(20));
    slots.push_back(t == 4 ? -1 : t * 7 % (shape.blocks * shape.block_size));
  }
  auto run = [&](int64_t first, int64_t count, Array& out) {
    Cache cache(shape);
    Array turned(dtype, count * q_width);
    std::memcpy(turned.data(), q.data() + first * q_width * size_of(dtype), static_cast<size_t>(turned.bytes()));
    RopeKvWriteParams p{};
    p.q = {turned.data(), q_width, dtype};
    p.k = {k.data() + first * k_width * size_of(dtype), k_width, dtype};
    p.v = {v.data() + first * k_width * size_of(dtype), k_width, dtype};
    p.positions = positions.data() + first;
    p.slots = slots.data() + first;
    p.rotary = reinterpret_cast<const float*>(rotary.data());
    p.q_norm_weight = p.k_norm_weight = normed ? weight.data() : nullptr;
    p.norm_eps = 1e-6f;
    p.tokens = count;
    p.heads = kHeads;
    p.rotary_dim = rotary_dim;
    p.interleaved = interleaved;
    p.layer_norm = p.norm_last = last;
    p.query_scale = last ? reinterpret_cast<const float*>(rotary.data()) : nullptr;
    p.cache = cache.params();
    cpu::kernels().rope_kv_write(p);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t i = 0; i < q_width; ++i) out.set(t * width + i, turned[t * q_width + i]);
      const int64_t slot = slots[static_cast<size_t>(first + t)];
      if (slot < 0) continue;
      for (int64_t i = 0; i < k_width; ++i) {
        const int64_t block = slot / shape.block_size, offset = slot % shape.block_size;
        out.set(t * width + q_width + i, cache.key(block, i / depth, offset, i % depth));
        out.set(t * width + q_width + k_width + i, cache.value(block, i / depth, offset, i % depth));
      }
    }
  };
  const Cache any(shape);
  auto head_of = [&](const Array& x, int64_t row, int64_t row_width, int64_t head, bool turn) {
    std::vector<double> out;
    for (int64_t d = 0; d < depth; ++d) out.push_back(x[row * row_width + head * depth + d]);
    if (!turn) return out;
    const int64_t position = positions[static_cast<size_t>(row)];
    if (last) out = rotated(out, rotary, position, rotary_dim, interleaved);
    if (normed) {
      double mean = 0, square = 0;
      for (double value : out) mean += last ? value / static_cast<double>(depth) : 0;
      for (double& value : out) value -= mean;
      for (double value : out) square += value * value / static_cast<double>(depth);
      for (int64_t d = 0; d < depth; ++d) out[static_cast<size_t>(d)] *= weight[d] / std::sqrt(square + 1e-6);
    }
    return last ? out : rotated(out, rotary, position, rotary_dim, interleaved);
  };
  const std::string name = std::string("rope_kv_write ") + name_of(dtype) + " into " + name_of(shape.dtype) + " " +
                           std::to_string(depth) + (normed ? " normed" : "") + (interleaved ? " interleaved" : "");
  check_rows(name, kTokens, width, DType::f32, run, [&](int64_t row, int64_t c) -> Near {
    const bool is_q = c < q_width, is_v = c >= q_width + k_width;
    const int64_t i = is_q ? c : (c - q_width) % k_width, d = i % depth;
    const std::vector<double> x = head_of(is_q ? q : is_v ? v : k, row, is_q ? q_width : k_width, i / depth, !is_v);
    const double scale = last && is_q ? rotary[positions[static_cast<size_t>(row)]] : 1;
    const double value = x[static_cast<size_t>(d)] * scale;
    const double arithmetic = is_v ? 0 : largest(x, 0, depth) * (normed ? 6 * rounding(dtype) + 2e-6 : 2e-6);
    if (is_q) return {value, arithmetic + std::fabs(value) * rounding(dtype)};
    if (slots[static_cast<size_t>(row)] < 0) return {0, 0};
    return {value,
            2 * arithmetic + any.error(value, largest(x, any.first_of_scale(d), any.end_of_scale(d)) + arithmetic)};
  });
}

void check_rotate_keys(CacheShape shape, Random& random) {
  const int64_t depth = shape.depth, blocks = shape.blocks - 1, size = shape.block_size;
  const int64_t width = shape.kv_heads * depth * size;
  const Cache before(shape, random);
  Array rotary(DType::f32, blocks * depth);
  for (int64_t i = 0; i < rotary.size; ++i) rotary.set(i, random.uniform());
  std::vector<int64_t> which;
  for (int64_t i = 0; i < blocks; ++i) which.push_back(blocks - i);
  auto run = [&](int64_t first, int64_t count, Array& out) {
    Cache cache = before;
    RotateKeysParams p{};
    p.cache = cache.params();
    p.blocks = which.data() + first;
    p.rotary = reinterpret_cast<const float*>(rotary.data()) + first * depth;
    p.count = count;
    p.rotary_dim = depth;
    cpu::kernels().rotate_keys(p);
    for (int64_t i = 0; i < count * width; ++i) {
      const int64_t head = i % width / (depth * size), d = i / size % depth;
      out.set(i, cache.key(which[static_cast<size_t>(first + i / width)], head, i % size, d));
    }
  };
  check_rows(std::string("rotate_keys ") + name_of(shape.dtype) + " " + std::to_string(depth), blocks, width,
             DType::f32, run, [&](int64_t row, int64_t c) -> Near {
               const int64_t head = c / (depth * size), d = c / size % depth;
               std::vector<double> x;
               for (int64_t i = 0; i < depth; ++i) {
                 x.push_back(before.key(which[static_cast<size_t>(row)], head, c % size, i));
               }
               x = rotated(x, rotary, row, depth, false);
               const double value = x[static_cast<size_t>(d)], arithmetic = largest(x, 0, depth) * 2e-6;
               const double most = largest(x, before.first_of_scale(d), before.end_of_scale(d));
               return {value, 2 * arithmetic + before.error(value, most + arithmetic)};
             });
}

void check_gather_kv(CacheShape shape, Random& random) {
  const int64_t size = shape.block_size, kept = 2 * size + 3;
  const Cache before(shape, random);
  const std::vector<int32_t> source = {3, 0, 4, 1}, destination = {2, 5, 6};
  std::vector<int32_t> indices;
  for (int64_t h = 0; h < shape.kv_heads; ++h) {
    for (int64_t i = 0; i < kept; ++i) indices.push_back(static_cast<int32_t>(i + random.below(size)));
  }
  const std::string name = std::string("gather_kv ") + name_of(shape.dtype);
  Digest digest(name);
  for (int count : {1, 3}) {
    threads = count;
    Cache cache = before;
    cpu::kernels().gather_kv({cache.params(), source.data(), destination.data(), indices.data(), kept});
    threads = 1;
    for (int64_t h = 0; h < shape.kv_heads; ++h) {
      for (int64_t i = 0; i < kept; ++i) {
        const int64_t from = indices[static_cast<size_t>(h * kept + i)], offset = from % size;
        const int64_t block = source[static_cast<size_t>(from / size)], to = destination[static_cast<size_t>(i / size)];
        for (int64_t d = 0; d < shape.depth; ++d) {
          expect_near(name, h, i, cache.key(to, h, i % size, d), {before.key(block, h, offset, d), 0});
          expect_near(name, h, i, cache.value(to, h, i % size, d), {before.value(block, h, offset, d), 0});
        }
      }
    }
    cache.add_to(digest);
  }
}

void check_copy_blocks(Random& random) {
  const Array from(DType::f32, 5 * 100, random);
  Array to(DType::f32, 5 * 100);
  const int64_t pairs[] = {0, 4, 3, 1, 2, 0};
  cpu::kernels().copy_blocks({from.data(), to.data(), pairs, 3, 400});
  for (int i = 0; i < 3; ++i) {
    expect_same("copy_blocks", "a block", to, pairs[2 * i + 1] * 100, from, pairs[2 * i] * 100, 100);
  }
}

}  // namespace

void check_kv_cache() {
  Random random(3);
  for (DType type : kCacheTypes) {
    for (DType dtype : kFloats) {
      check_rope_kv_write({type, 8, 2, 16, 64}, dtype, false, false, random);
      check_rope_kv_write({type, 16, 2, 8, 40}, dtype, true, true, random);
    }
    check_rotate_keys({type, 4, 2, 16, 64}, random);
    check_rotate_keys({type, 3, 2, 8, 40}, random);
    check_gather_kv({type, 7, 2, 8, 40}, random);
  }
  check_copy_blocks(random);
}

}  // namespace check
