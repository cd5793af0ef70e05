#include "cpu/kv_quantise.h"
#include "cpu/vec.h"
#include "pybatch/kv_pruning.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// The keys of up to sixteen tokens in fp32, a token a lane.
struct alignas(64) Keys {
  float x[kMaxHeadDim][kLanes];
};

// offset: of the head, or null.
void turn(Keys& keys, const float* rotary, int64_t rotary_dim, const float* offset) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const F32x16 c = broadcast(rotary[i]), s = broadcast(rotary[half + i]);
    const F32x16 a_off = broadcast(offset ? offset[i] : 0.0f), b_off = broadcast(offset ? offset[half + i] : 0.0f);
    const F32x16 a = load(keys.x[i]) + a_off, b = load(keys.x[half + i]) + b_off;
    store(keys.x[i], a * c - b * s - a_off);
    store(keys.x[half + i], b * c + a * s - b_off);
  }
}

template <class T>
void rotate(T* k, int64_t block_size, int64_t tokens, const float* rotary, int64_t rotary_dim, const float* offset) {
  Keys keys;
  for (int64_t d = 0; d < rotary_dim; ++d) store(keys.x[d], load_first(k + d * block_size, tokens));
  turn(keys, rotary, rotary_dim, offset);
  for (int64_t d = 0; d < rotary_dim; ++d) store_first(k + d * block_size, load(keys.x[d]), tokens);
}

void rotate_int8(int8_t* k, f16* scales, int64_t block_size, int64_t depth, int64_t tokens, const float* rotary,
                 int64_t rotary_dim, const float* offset) {
  Keys keys;
  const F32x16 before = load_first(scales, tokens);
  for (int64_t d = 0; d < depth; ++d) store(keys.x[d], load_first(k + d * block_size, tokens) * before);
  turn(keys, rotary, rotary_dim, offset);
  F32x16 largest = zeros(), bad = zeros();  // bad: NaN where an element is not finite
  for (int64_t d = 0; d < depth; ++d) {
    largest = max(largest, abs(load(keys.x[d])));
    bad = fma(load(keys.x[d]), zeros(), bad);
  }
  const F32x16 limit = broadcast(127.0f);
  store_first(scales, largest / limit + bad, tokens);
  float divisors[kLanes];
  store(divisors, load_first(scales, tokens));
  for (float& divisor : divisors) divisor = divisor > 0.0f ? divisor : 1.0f;
  const F32x16 divisor = load(divisors);
  for (int64_t d = 0; d < depth; ++d) {
    const F32x16 q = round(load(keys.x[d]) / divisor);
    store(keys.x[d], max(min(q, limit), zeros() - limit));
    for (int64_t i = 0; i < tokens; ++i) {
      k[d * block_size + i] = static_cast<int8_t>(static_cast<int32_t>(keys.x[d][i]));
    }
  }
}

// One token.
void rotate_int4(uint32_t* words, f16* scales, int64_t block_size, int64_t depth, const float* rotary,
                 int64_t rotary_dim, const float* offset) {
  float x[kMaxHeadDim] = {};
  read_int4_key(words, scales, depth, block_size, x);
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a_off = offset ? offset[i] : 0.0f, b_off = offset ? offset[half + i] : 0.0f;
    const float a = x[i] + a_off, b = x[half + i] + b_off, c = rotary[i], s = rotary[half + i];
    x[i] = a * c - b * s - a_off;
    x[half + i] = b * c + a * s - b_off;
  }
  quantise_int4(x, depth, scales, block_size);
  write_int4_key(x, depth, words, block_size);
}

}  // namespace

void rotate_keys(const RotateKeysParams& p) {
  const KvCache& c = p.cache;
  const int64_t at_once = c.block_size < kLanes ? c.block_size : kLanes;
  parallel_for(p.count * c.kv_heads, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t block = p.blocks[i / c.kv_heads], head = i % c.kv_heads;
      const float* rotary = p.rotary + i / c.kv_heads * p.rotary_dim;
      const float* offset = p.key_offset ? p.key_offset + head * c.head_dim : nullptr;
      const int64_t at = block * c.k_block_stride + head * c.head_dim * c.block_size;
      if (c.dtype == DType::i4) {
        auto* words = reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(c.k) + block * c.k_block_stride) +
                      head * c.head_dim / 8 * c.block_size;
        f16* scales = static_cast<f16*>(c.k_scale) + block * c.k_scale_block_stride + head * c.groups() * c.block_size;
        for (int64_t token = 0; token < c.block_size; ++token) {
          rotate_int4(words + token, scales + token, c.block_size, c.head_dim, rotary, p.rotary_dim, offset);
        }
        continue;
      }
      for (int64_t token = 0; token < c.block_size; token += at_once) {
        if (c.dtype == DType::i8) {
          rotate_int8(static_cast<int8_t*>(c.k) + at + token,
                      static_cast<f16*>(c.k_scale) + block * c.k_scale_block_stride + head * c.block_size + token,
                      c.block_size, c.head_dim, at_once, rotary, p.rotary_dim, offset);
          continue;
        }
        with_float_type(c.dtype, [&]<class T>(T*) {
          rotate(static_cast<T*>(c.k) + at + token, c.block_size, at_once, rotary, p.rotary_dim, offset);
        });
      }
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
