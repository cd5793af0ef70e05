#include "cpu/gemm_experts.h"
#include "cpu/gguf_blocks.h"
#include "pybatch/matmul.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/amx.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 32;  // activations that share a scale
constexpr int kAhead = 4096;    // bytes of weights prefetched: within a group they are not read in order

struct ActivationBlock {
  int8_t q[kBlock];
  float scale;
  float scaled_sum[2];  // scale * sum(q), which a weight block's min multiplies; of each half, if they have their own
  int32_t start[2];     // of the dot products of each half: cancels the offset of the codes

  template <class Type>
  PYBATCH_INLINE void set(int64_t, I32x16 q0, I32x16 q1, float of_block) {
    const int32_t sum0 = reduce_add(q0), sum1 = reduce_add(q1);
    store_bytes(q, q0);
    store_bytes(q + 16, q1);
    scale = of_block;
    scaled_sum[0] = of_block * static_cast<float>(Type::kMins == 2 ? sum0 : sum0 + sum1);
    scaled_sum[1] = of_block * static_cast<float>(sum1);
    start[0] = -Type::kOffset * (Type::kScales == 2 ? sum0 : sum0 + sum1);
    start[1] = Type::kScales == 2 ? -Type::kOffset * sum1 : 0;
  }
};

// Of blocks whose scales are packed too: unpacked weights, 12 KiB, stay in the L1 cache.
struct SuperblockTile : BlockTile {
  static constexpr int64_t kBlockSteps = 16;
};

template <class Type>
struct UnpackedOp;

// A step is one block: the weights' codes are unpacked once for all the rows of a tile, or of several (kWiden).
template <class Type>
struct BlockOp {
  using Sum = F32x16;
  using X = const ActivationBlock*;
  using W = Unpacked;
  using Tile = std::conditional_t<(Type::kWeights > kBlock), SuperblockTile, BlockTile>;
  using Widened = std::conditional_t<(Type::kWeights > kBlock), UnpackedOp<Type>, BlockOp>;
  static constexpr int kSteps = Type::kWeights / kBlock;
  static constexpr int kGroupBytes = kPanel * Type::kBytes;
  static constexpr int kStepBytes = sizeof(ActivationBlock);
  static constexpr bool kWiden = Type::kWeights > kBlock;
  static PYBATCH_INLINE X activation(const char* p) { return reinterpret_cast<X>(p); }
  static PYBATCH_INLINE W weight(const char* group, int step) {
    constexpr int kBytes = kGroupBytes / kSteps;
#pragma GCC unroll 16
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(group + kAhead + step * kBytes + line);
    return Type::unpack(group, step);
  }
  static PYBATCH_INLINE I32x16 start(X x, int half) {
    return broadcast_int(Type::kOffset == 0 || half >= Type::kScales ? 0 : x->start[half]);
  }
  static PYBATCH_INLINE I32x16 dot(X x, const W& w, int half) {
    return dot16<Type::kMaxCode>(w.codes + 4 * half, x->q + 16 * half, start(x, half));
  }
  static PYBATCH_INLINE Sum multiply_add(X x, const W& w, Sum sum) {
    const I32x16 dots[2] = {dot(x, w, 0), dot(x, w, 1)};
    return add_halves(x, w, dots, sum);
  }
#if defined(PYBATCH_ANY_AVX512)
  // Of up to kTurns rows, whose dot products take turns: one after another, each would wait for its own last product.
  // Those of more than four rows are as many as are needed for that, without halves of their own.
  static constexpr int kTurns = Type::kScales == 1 ? 8 : 4;
  template <int kRows>
  static PYBATCH_INLINE void multiply_add(const X* x, const W& w, Sum* sum) {
    constexpr int kDots = kRows > 4 ? 1 : 2, kWords = 8 / kDots;
    I32x16 dots[kRows][kDots];
#pragma GCC unroll 8
    for (int i = 0; i < kRows * kDots; ++i) dots[i / kDots][i % kDots] = start(x[i / kDots], i % kDots);
#pragma GCC unroll 8
    for (int word = 0; word < kWords; ++word) {
#pragma GCC unroll 8
      for (int i = 0; i < kRows * kDots; ++i) {
        const int r = i / kDots, at = i % kDots * kWords + word;
        dots[r][i % kDots] = add_dot(dots[r][i % kDots], w.codes[at], x[r]->q + 4 * at);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kDots == 2) {
        sum[r] = add_halves(x[r], w, dots[r], sum[r]);
      } else {
        sum[r] = add(x[r], w, dots[r], sum[r]);
      }
    }
  }
#endif
  static PYBATCH_INLINE Sum add_halves(X x, const W& w, const I32x16 (&dots)[2], Sum sum) {
    if constexpr (Type::kScales == 2) return add(x, w, dots, sum);
    const I32x16 dot = dots[0] + dots[1];
    return add(x, w, &dot, sum);
  }
  // dots: a scale each.
  static PYBATCH_INLINE Sum add(X x, const W& w, const I32x16* dots, Sum sum) {
    const F32x16 scale = broadcast(x->scale);
#pragma GCC unroll 2
    for (int i = 0; i < Type::kScales; ++i) sum = fma(to_float(dots[i]), w.scale[i] * scale, sum);
#pragma GCC unroll 2
    for (int i = 0; i < Type::kMins; ++i) sum = fma(w.min[i], broadcast(x->scaled_sum[i]), sum);
    return sum;
  }
};

// BlockOp's products of weights that have been unpacked.
template <class Type>
struct UnpackedOp : BlockOp<Type> {
  static constexpr int kSteps = 1, kGroupBytes = sizeof(Unpacked);
  static PYBATCH_INLINE Unpacked weight(const char* group, int) { return *reinterpret_cast<const Unpacked*>(group); }
};

#if defined(PYBATCH_ISA_AMX)

// Activations of a step of 16 rows.
struct ActivationTile {
  static constexpr int kRows = TileShapes::kRows;

  int8_t q[kRows][kBlock];
  float scale[kRows], scaled_sum[2][kRows];

  template <class Type>
  PYBATCH_INLINE void set(int64_t row, I32x16 q0, I32x16 q1, float of_block) {
    store_bytes(q[row], q0);
    store_bytes(q[row] + 16, q1);
    scale[row] = of_block;
    if constexpr (Type::kMins > 0) {
      const int32_t sum0 = reduce_add(q0), sum1 = reduce_add(q1);
      scaled_sum[0][row] = of_block * static_cast<float>(Type::kMins == 2 ? sum0 : sum0 + sum1);
      scaled_sum[1][row] = of_block * static_cast<float>(sum1);
    }
  }
};

// BlockOp's products of 16 rows in tiles, of weights that have been unpacked. Their codes have signs.
template <class Type>
struct UnpackedTilesOp {
  static constexpr int kSteps = 1, kGroupBytes = sizeof(Unpacked), kStepBytes = sizeof(ActivationTile);
  static constexpr int kDots = Type::kScales, kDotBytes = kBlock / kDots;  // in a step
  static constexpr int kActivationTiles = 4, kWeightTiles = 6;  // two each; four of dot products are before them
  struct Tile {
    static constexpr int kMaxRows = 1, kMaxPanels = 1, kMaxSums = 1, kStepWork = 48, kWidenRows = 1;
    static constexpr int64_t kBlockSteps = 32, kBlockRows = 256;  // the weights, 24 KiB, stay in the L1 cache
    struct Use : TilesInUse {
      static constexpr TileShapes kShapes = [] {
        TileShapes shapes;
        for (int i = 0; i < 2; ++i) {
          shapes.shape(kActivationTiles + i, TileShapes::kRows, kDotBytes);
          shapes.shape(kWeightTiles + i, kDotBytes / 4, TileShapes::kRowBytes);
        }
        return shapes;
      }();
      Use() : TilesInUse(kShapes) {}
    };
  };
  struct Sum {
    F32x16 row[ActivationTile::kRows];
  };
  using Dots = I32x16[ActivationTile::kRows];
  static PYBATCH_INLINE void add(const Dots* dots, const ActivationTile& x, const Unpacked& w, F32x16* sum) {
#pragma GCC unroll 16
    for (int r = 0; r < ActivationTile::kRows; ++r) {
      const F32x16 scale = broadcast(x.scale[r]);
#pragma GCC unroll 2
      for (int dot = 0; dot < kDots; ++dot) {
        sum[r] = fma(to_float(dots[dot][r]), w.scale[dot] * scale, sum[r]);
      }
#pragma GCC unroll 2
      for (int i = 0; i < Type::kMins; ++i) sum[r] = fma(w.min[i], broadcast(x.scaled_sum[i][r]), sum[r]);
    }
  }

  // Four dot products are under way: one waits for those before it where it uses a tile of theirs. Each takes longer
  // than to scale and add one, which goes on beside them.
  template <int, int>
  static void multiply_tile(const TileArguments& t) {
    constexpr int kAtOnce = 4 / kDots, kAhead = kAtOnce - 1;  // steps
    const auto* x = reinterpret_cast<const ActivationTile*>(t.x);
    const auto* w = reinterpret_cast<const Unpacked*>(t.weight);
    const int64_t steps = t.steps;
    Dots dots[4];
    auto multiply = [&](auto place, int64_t step) PYBATCH_INLINE_LAMBDA {
      for_each_number<kDots>([&](auto dot) PYBATCH_INLINE_LAMBDA {
        constexpr int kDot = decltype(place)() * kDots + dot, kX = kActivationTiles + kDot % 2;
        constexpr int kW = kWeightTiles + kDot % 2;
        if (step >= steps) return;
        zero_tile<kDot>();
        load_tile<kX>(x[step].q[0] + dot * kDotBytes, kBlock);
        load_tile<kW>(w[step].codes + dot * (kDotBytes / 4), sizeof(I32x16));
        multiply_signed<kDot, kX, kW>();
        store_tile<kDot>(dots[kDot], sizeof(I32x16));
      });
    };
    F32x16* sums = static_cast<Sum*>(t.sums)->row;
    F32x16 sum[ActivationTile::kRows];
#pragma GCC unroll 16
    for (int r = 0; r < ActivationTile::kRows; ++r) sum[r] = t.resume ? sums[r] : zeros();
    for_each_number<kAhead>([&](auto step) PYBATCH_INLINE_LAMBDA { multiply(step, step); });
    for (int64_t first = 0; first < steps; first += kAtOnce) {
      for_each_number<kAtOnce>([&](auto place) PYBATCH_INLINE_LAMBDA {
        const int64_t step = first + place;
        if (step < steps) {
          multiply(Number<(place + kAhead) % kAtOnce>(), step + kAhead);
          add(dots + place * kDots, x[step], w[step], sum);
        }
      });
    }
#pragma GCC unroll 16
    for (int r = 0; r < ActivationTile::kRows; ++r) sums[r] = sum[r];
  }
};

template <class Type>
struct TilesOp : UnpackedTilesOp<Type> {
  using W = Unpacked;
  using Widened = UnpackedTilesOp<Type>;
  static constexpr int kSteps = BlockOp<Type>::kSteps, kGroupBytes = BlockOp<Type>::kGroupBytes;
  static constexpr bool kWiden = true;
  static PYBATCH_INLINE W weight(const char* group, int step) {
    W w = BlockOp<Type>::weight(group, step);
    if constexpr (Type::kOffset != 0) {
#pragma GCC unroll 8
      for (I32x16& codes : w.codes) codes = {_mm512_sub_epi8(codes.v, bytes(Type::kOffset).v)};
    }
    return w;
  }
};
constexpr int64_t kTileRows = 24;  // rows from which they beat BlockOp

#endif

template <class Type, class Activations, class T>
void quantize_row(const T* x, int64_t k, Activations* out, int64_t row) {
  constexpr int32_t kInfinity = 0x7f800000;
  for (const T* end = x + k; x < end; x += kBlock, ++out) {
    F32x16 first = load(x), second = load(x + 16);
    int32_t largest = reduce_max(max(float_bits(abs(first)), float_bits(abs(second))));  // as bits, NaN is the largest
    const float most = as_float(static_cast<uint32_t>(largest)), scale = most / 127.0f;
    if (largest >= kInfinity || scale < kSmallestNormal) {
      const I32x16 zero = broadcast_int(0);
      out->template set<Type>(row, zero, zero, largest >= kInfinity ? as_float(0x7fc00000) : 0.0f);
      continue;
    }
    const F32x16 inverse = broadcast(127.0f / most);
    out->template set<Type>(row, to_int(first * inverse), to_int(second * inverse), scale);
  }
}

// Calls clear with those that have rows that there are not.
template <class Clear>
void clear_last_tiles(const MatmulParams& p, int64_t rows, const Clear& clear) {
  if (p.experts.count == 0) {
    if (p.m % rows != 0) clear(p.m / rows);
    return;
  }
  for (int64_t e = 0; e < p.experts.count; ++e) {
    const int64_t count = p.experts.starts[e + 1] - p.experts.starts[e];
    if (count % rows != 0) clear((first_row(p.experts, e, rows) + count) / rows);
  }
}

// A row of the product is one of Activations' kRows.
template <class Type, class Op, class Activations, int kRows, class Finish>
void multiply(const MatmulParams& p, const Finish& finish) {
  constexpr int64_t kBytes = sizeof(Activations);
  int64_t stride = p.k / kBlock;
  if (stride * kBytes % 4096 == 0) ++stride;  // such rows would share one cache set
  const int64_t count = laid_out_rows(p, kRows) / kRows;
  auto* rows = static_cast<Activations*>(thread_scratch(kActivations, count * stride * kBytes));
  clear_last_tiles(p, kRows, [&](int64_t tile) { std::memset(rows + tile * stride, 0, stride * kBytes); });
  for_each_row<kRows>(
      p, [&](int64_t row, auto* x) { quantize_row<Type>(x, p.k, rows + row / kRows * stride, row % kRows); });
  Gemm g{p, rows, stride * kBytes, p.k / Type::kWeights * Op::kGroupBytes, p.k / kBlock, kRows};
  gemm_by_expert<Op>(g, finish);
}

}  // namespace

void matmul_gguf(const MatmulParams& params) {
  // One function for all types of blocks, since most of the code is in it.
  auto finish = [](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
                   const F32x16* sums) {
    write_tile(p, panel, panels, row, rows, sums, [](int64_t) { return [](int64_t, F32x16 sum) { return sum; }; });
  };
  with_gguf_type(params.gguf_type, [&](auto* type) {
    using Type = Pointee<decltype(type)>;
#if defined(PYBATCH_ISA_AMX)
    if (rows_together(params) >= kTileRows) {
      using Op = TilesOp<Type>;
      constexpr int kRows = ActivationTile::kRows;
      return multiply<Type, Op, ActivationTile, kRows>(
          params,
          [&](const MatmulParams& p, int64_t panel, int64_t panels, int64_t row, int64_t rows,
              const typename Op::Sum* sums) { finish(p, panel, panels, kRows * row, kRows * rows, sums->row); });
    }
#endif
    multiply<Type, BlockOp<Type>, ActivationBlock, 1>(params, finish);
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
