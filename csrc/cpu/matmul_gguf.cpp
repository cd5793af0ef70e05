#include "cpu/gemm.h"
#include "cpu/gguf_blocks.h"
#include "cpu/kernels.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 32;  // activations that share a scale
constexpr int kAhead = 4096;    // bytes of weights prefetched: within a group they are not read in order

struct ActivationBlock {
  int8_t q[kBlock];
  float scale;
  float scaled_sum;  // scale * sum(q), which a weight block's min multiplies
  int32_t start[2];  // of the dot products of each half: cancels the offset of the codes
};

// A step is one block: the weights' codes are unpacked once for all the rows of a tile.
template <class Type>
struct BlockOp {
  using Sum = F32x16;
  using X = const ActivationBlock*;
  using W = Unpacked;
  using Tile = BlockTile;
  using Widened = BlockOp;
  static constexpr int kSteps = Type::kWeights / kBlock;
  static constexpr int kGroupBytes = kPanel * Type::kBytes;
  static constexpr int kStepBytes = sizeof(ActivationBlock);
  static constexpr bool kWiden = false;
  static PYBATCH_INLINE X activation(const char* p) { return reinterpret_cast<X>(p); }
  static PYBATCH_INLINE W weight(const char* group, int step) {
    constexpr int kBytes = kGroupBytes / kSteps;
#pragma GCC unroll 16
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(group + kAhead + step * kBytes + line);
    return Type::unpack(group, step);
  }
  static PYBATCH_INLINE I32x16 dot(X x, const W& w, int half) {
    return dot16<Type::kMaxCode>(w.codes + 4 * half, x->q + 16 * half,
                                 broadcast_int(Type::kOffset == 0 ? 0 : x->start[half]));
  }
  static PYBATCH_INLINE Sum multiply_add(X x, const W& w, Sum sum) {
    F32x16 scale = broadcast(x->scale);
    I32x16 first = dot(x, w, 0), second = dot(x, w, 1);
    if constexpr (Type::kScales == 1) {
      sum = fma(to_float(first + second), w.scale[0] * scale, sum);
    } else {
      sum = fma(to_float(first), w.scale[0] * scale, sum);
      sum = fma(to_float(second), w.scale[1] * scale, sum);
    }
    if constexpr (Type::kMin) sum = fma(w.min, broadcast(x->scaled_sum), sum);
    return sum;
  }
};

template <class T>
void quantize_row(const T* x, int64_t k, int32_t offset, ActivationBlock* out) {
  constexpr int32_t kInfinity = 0x7f800000;
  for (const T* end = x + k; x < end; x += kBlock, ++out) {
    F32x16 first = load(x), second = load(x + 16);
    int32_t largest = reduce_max(max(float_bits(abs(first)), float_bits(abs(second))));  // as bits, NaN is the largest
    const float most = as_float(static_cast<uint32_t>(largest)), scale = most / 127.0f;
    if (largest >= kInfinity || scale < kSmallestNormal) {
      std::memset(out, 0, sizeof(*out));
      if (largest >= kInfinity) out->scale = out->scaled_sum = as_float(0x7fc00000);
      continue;
    }
    const F32x16 inverse = broadcast(127.0f / most);
    I32x16 q0 = to_int(first * inverse), q1 = to_int(second * inverse);
    int32_t sum0 = reduce_add(q0), sum1 = reduce_add(q1);
    store_bytes(out->q, q0);
    store_bytes(out->q + 16, q1);
    out->scale = scale;
    out->scaled_sum = scale * static_cast<float>(sum0 + sum1);
    out->start[0] = -offset * sum0;
    out->start[1] = -offset * sum1;
  }
}

template <class Type, class Finish>
void multiply(const MatmulParams& p, const Finish& finish) {
  int64_t blocks = p.k / kBlock;
  int64_t stride = blocks;
  if (stride * sizeof(ActivationBlock) % 4096 == 0) ++stride;  // such rows would share one cache set
  auto* rows = static_cast<ActivationBlock*>(
      thread_scratch(kActivations, p.m * stride * static_cast<int64_t>(sizeof(ActivationBlock))));
  for_each_row(p, [&](int64_t row, auto* x) { quantize_row(x, p.k, Type::kOffset, rows + row * stride); });
  using Op = BlockOp<Type>;
  Gemm g{p, rows, stride * static_cast<int64_t>(sizeof(ActivationBlock)), p.k / Type::kWeights * Op::kGroupBytes,
         blocks};
  gemm<Op>(g, finish);
}

}  // namespace

void matmul_gguf(const MatmulParams& p) {
  // One function for all types of blocks, since most of the code is in it.
  auto finish = [&](int64_t panel, int64_t panels, int64_t row, int64_t rows, const F32x16* sums) {
    write_tile(p, panel, panels, row, rows, sums, [](int64_t) { return [](int64_t, F32x16 sum) { return sum; }; });
  };
  with_gguf_type(p.gguf_type, [&](auto* type) { multiply<Pointee<decltype(type)>>(p, finish); });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
