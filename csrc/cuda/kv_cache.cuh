// Elements of the paged KV cache one by one, and a warp's work on one head in shared memory: rotation, quantisation and
// the way to its place in the cache.
#pragma once

#include "cuda/common.cuh"
#include "pybatch/head_dim.h"
#include "pybatch/kv_cache.h"

namespace pybatch::cuda {

// ---- int4 codes: where element i of eight of a key, or of a group of n of a value, is ----

__device__ __forceinline__ int key_nibble(int i) { return i / 2 + 4 * (i % 2); }

__device__ __forceinline__ float code_of(uint32_t word, int nibble) {
  return static_cast<float>(static_cast<int32_t>(word << (28 - 4 * nibble)) >> 28);
}
__device__ __forceinline__ uint32_t nibble_of(float code, int nibble) {
  return (static_cast<uint32_t>(static_cast<int32_t>(code)) & 15u) << (4 * nibble);
}
__device__ __forceinline__ int group_size(int dim, int group) {
  const int left = dim - group * static_cast<int>(kInt4Group);
  return left < kInt4Group ? left : static_cast<int>(kInt4Group);
}

__device__ __forceinline__ uint32_t* int4_keys(const KvCache& c, int64_t block, int64_t head) {
  return reinterpret_cast<uint32_t*>(static_cast<char*>(c.k) + block * c.k_block_stride) +
         head * (c.head_dim / 8) * c.block_size;
}
// The token's word of element 0.
__device__ __forceinline__ uint16_t* int4_values(const KvCache& c, int64_t block, int64_t head, int64_t offset) {
  return reinterpret_cast<uint16_t*>(static_cast<char*>(c.v) + block * c.v_block_stride) +
         (head * c.block_size + offset) / 4 * c.head_dim + offset % 4;
}

// ---- reading: codes, and the scales by which they are to be multiplied ----

__device__ __forceinline__ float key_code(const KvCache& c, int64_t block, int64_t head, int64_t offset, int d) {
  if (c.dtype == DType::i4) {
    return code_of(int4_keys(c, block, head)[d / 8 * c.block_size + offset], key_nibble(d % 8));
  }
  return load_as(c.dtype, c.k, block * c.k_block_stride + (head * c.head_dim + d) * c.block_size + offset);
}

__device__ __forceinline__ float value_code(const KvCache& c, int64_t block, int64_t head, int64_t offset, int d) {
  if (c.dtype == DType::i4) {
    constexpr int kGroup = static_cast<int>(kInt4Group);
    const int group = d / kGroup, words = group_size(static_cast<int>(c.head_dim), group) / 4, i = d % kGroup;
    return code_of(int4_values(c, block, head, offset)[group * kGroup + i % words * 4], i / words);
  }
  return load_as(c.dtype, c.v, block * c.v_block_stride + (head * c.block_size + offset) * c.head_dim + d);
}

__device__ __forceinline__ f16* scales_of(const KvCache& c, bool of_keys, int64_t block, int64_t head, int64_t offset) {
  return static_cast<f16*>(of_keys ? c.k_scale : c.v_scale) +
         block * (of_keys ? c.k_scale_block_stride : c.v_scale_block_stride) + head * c.groups() * c.block_size +
         offset;
}
__device__ __forceinline__ float key_scale(const KvCache& c, int64_t block, int64_t head, int64_t offset, int group) {
  return c.has_scales() ? to_float(scales_of(c, true, block, head, offset)[group * c.block_size]) : 1.0f;
}
__device__ __forceinline__ float value_scale(const KvCache& c, int64_t block, int64_t head, int64_t offset, int group) {
  return c.has_scales() ? to_float(scales_of(c, false, block, head, offset)[group * c.block_size]) : 1.0f;
}

// Elements that share a scale.
__device__ __forceinline__ int scaled_together(const KvCache& c) {
  return static_cast<int>(c.dtype == DType::i4 ? kInt4Group : c.head_dim);
}

// ---- writing ----

__device__ __forceinline__ void rotate(float* head, const float* cos_sin, int rotary_dim, bool interleaved, int lane) {
  const int half = rotary_dim / 2;
  for (int i = lane; i < half; i += kWarp) {
    const int first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + half;
    const float cos = cos_sin[i], sin = cos_sin[half + i], x = head[first], y = head[second];
    head[first] = x * cos - y * sin;
    head[second] = y * cos + x * sin;
  }
  __syncwarp();
}

// Turns x[0, n) into codes, in place, and returns their scale as it was rounded: NaN where an x is not finite.
__device__ __forceinline__ f16 quantise(DType type, float* x, int n, int lane) {
  float high = 0.0f, low = 0.0f;
  bool finite = true;
  for (int i = lane; i < n; i += kWarp) {
    high = fmaxf(high, x[i]);
    low = fmaxf(low, -x[i]);
    finite = finite && isfinite(x[i]);
  }
  high = warp_reduce<Largest>(high);
  low = warp_reduce<Largest>(low);
  const float most = type == DType::i4 ? 7.0f : type == DType::i8 ? 127.0f : 448.0f;
  const float least = type == DType::i4 ? -8.0f : -most;
  const float exact = type != DType::i4 ? fmaxf(high, low) / most : high > low ? high / least : low / -least;
  const f16 scale = from_float<f16>(__all_sync(kAllLanes, finite) ? exact : NAN);
  const float step = to_float(scale), divisor = step != 0.0f ? step : 1.0f;
  for (int i = lane; i < n; i += kWarp) {
    const float q = x[i] / divisor;
    x[i] = fminf(fmaxf(type == DType::e4m3 ? q : rintf(q), least), most);
  }
  __syncwarp();
  return scale;
}

__device__ __forceinline__ void write_int4(const KvCache& c, bool is_key, const float* codes, int64_t block, int64_t h,
                                           int64_t offset, int lane) {
  const int dim = static_cast<int>(c.head_dim), each = is_key ? 8 : 4;
  for (int w = lane; w < dim / each; w += kWarp) {
    uint32_t word = 0;
    if (is_key) {
      for (int i = 0; i < 8; ++i) word |= nibble_of(codes[8 * w + i], key_nibble(i));
      int4_keys(c, block, h)[w * c.block_size + offset] = word;
    } else {
      constexpr int kWords = static_cast<int>(kInt4Group) / 4;
      const int words = group_size(dim, w / kWords) / 4;
      const float* first = codes + w / kWords * kInt4Group + w % kWords;
      for (int i = 0; i < 4; ++i) word |= nibble_of(first[i * words], i);
      int4_values(c, block, h, offset)[4 * w] = static_cast<uint16_t>(word);
    }
  }
}

// Writes a head, which is in shared memory and loses its values there, to the place of its token in a block.
__device__ __forceinline__ void write_head(const KvCache& c, bool is_key, float* head, int64_t block, int64_t h,
                                           int64_t offset, int lane) {
  const int dim = static_cast<int>(c.head_dim);
  if (c.has_scales()) {
    f16* scales = scales_of(c, is_key, block, h, offset);
    const int together = scaled_together(c);
    for (int first = 0; first < dim; first += together, scales += c.block_size) {
      const f16 scale = quantise(c.dtype, head + first, dim - first < together ? dim - first : together, lane);
      if (lane == 0) *scales = scale;
    }
    if (c.dtype == DType::i4) return write_int4(c, is_key, head, block, h, offset, lane);
  }
  void* to = is_key ? c.k : c.v;
  const int64_t at = is_key ? block * c.k_block_stride + h * dim * c.block_size + offset
                            : block * c.v_block_stride + (h * c.block_size + offset) * dim;
  const int64_t stride = is_key ? c.block_size : 1;
  for (int i = lane; i < dim; i += kWarp) store_as(c.dtype, to, at + i * stride, head[i]);
}

}  // namespace pybatch::cuda
