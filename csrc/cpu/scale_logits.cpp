#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/sampling.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kPiece = 8192;  // of a row, so that one row has work for all threads

// tanh(y) = 1 - 2 / (exp(2y) + 1)
PYBATCH_INLINE F32x16 soft_capped(F32x16 x, float c) {
  const F32x16 one = broadcast(1.0f);
  return broadcast(c) * (one - broadcast(2.0f) / (exp(x * broadcast(2.0f / c)) + one));
}

}  // namespace

void scale_logits(const ScaleLogitsParams& p) {
  const int64_t pieces = (p.vocab + kPiece - 1) / kPiece;
  parallel_for(p.rows * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece % pieces * kPiece;
      const int64_t n = p.vocab - first < kPiece ? p.vocab - first : kPiece;
      float* logits = p.logits + piece / pieces * p.row_stride + first;
      for (int64_t i = 0; i < n; i += kLanes) {
        F32x16 x = load_first(logits + i, n - i) * broadcast(p.scale);
        if (p.soft_cap > 0) x = soft_capped(x, p.soft_cap);
        store_first(logits + i, x, n - i);
      }
    }
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
