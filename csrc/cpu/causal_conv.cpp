#include "cpu/activation_lanes.h"
#include "pybatch/linear_attention.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

template <class T>
struct Convolution {
  const CausalConvParams& p;

  // Row `t` of a sequence's inputs, of which it may be one that the state has; null where the sequence has not begun.
  const T* input(int64_t s, int64_t t) const {
    if (t >= 0) return static_cast<const T*>(p.x.data) + (p.batch.query_start[s] + t) * p.x.row_stride;
    const int64_t slot = p.batch.source[s];
    return slot < 0 ? nullptr : static_cast<const T*>(p.state) + slot * p.state_stride + (p.taps - 1 + t) * p.channels;
  }

  void compute(int64_t s, int64_t t) const {
    T* out = static_cast<T*>(p.out.data) + (p.batch.query_start[s] + t) * p.out.row_stride;
    if (p.batch.destination[s] < 0) {
      std::memset(static_cast<void*>(out), 0, static_cast<size_t>(p.channels) * sizeof(T));
      return;
    }
    const T* rows[kMostTaps];
    for (int64_t j = 0; j < p.taps; ++j) rows[j] = input(s, t - p.taps + 1 + j);
    for (int64_t i = 0; i < p.channels; i += kLanes) {
      const int64_t n = p.channels - i;
      F32x16 sum = zeros();
      for (int64_t j = 0; j < p.taps; ++j) {
        const F32x16 x = rows[j] == nullptr ? zeros() : load_first(rows[j] + i, n);
        sum = fma(load_first(static_cast<const T*>(p.weight) + j * p.channels + i, n), x, sum);
      }
      store_first(out + i, silu(sum), n);
    }
  }

  void keep(int64_t s) const {
    const int64_t slot = p.batch.destination[s], length = p.batch.query_start[s + 1] - p.batch.query_start[s];
    if (slot < 0) return;
    const size_t bytes = static_cast<size_t>(p.channels) * sizeof(T);
    for (int64_t j = 0; j < p.taps - 1; ++j) {
      void* to = static_cast<T*>(p.state) + slot * p.state_stride + j * p.channels;
      const T* row = input(s, length - p.taps + 1 + j);
      if (row == nullptr) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, row, bytes);
      }
    }
  }
};

}  // namespace

void causal_conv(const CausalConvParams& p) {
  with_float_type(p.x.dtype, [&]<class T>(T*) {
    const Convolution<T> convolution{p};
    const int32_t* starts = p.batch.query_start;
    parallel_for(p.batch.tokens, 1 + 4096 / (p.channels + 1), [&](int64_t begin, int64_t end) {
      int64_t s = 0;
      while (starts[s + 1] <= begin) ++s;
      for (int64_t row = begin; row < end; ++row) {
        convolution.compute(s, row - starts[s]);
        if (row + 1 == starts[s + 1]) convolution.keep(s++);
      }
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
