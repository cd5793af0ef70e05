#include "cpu/activation_lanes.h"
#include "cpu/norm_rows.h"
#include "pybatch/linear_attention.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int kVectors = 4;  // of columns of a state that are worked on together: of 128 rows they take 32 KiB
constexpr int64_t kColumns = kVectors * kLanes;
constexpr int64_t kCopied = 4;  // tokens for which it pays to work on a copy
static_assert(kStateLanes == kLanes);

// log(1 + exp(x)) = max(x, 0) + log(1 + u) with u = exp(-|x|): log(1 + u) = 2 artanh(u / (2 + u)), whose argument is at
// most 1/3.
PYBATCH_INLINE F32x16 softplus(F32x16 x) {
  const F32x16 u = exp(zeros() - abs(x)), s = u / (broadcast(2.0f) + u), square = s * s;
  F32x16 p = broadcast(1.0f / 15.0f);
  for (int odd = 13; odd > 0; odd -= 2) p = fma(p, square, broadcast(1.0f / static_cast<float>(odd)));
  return fma(s + s, p, max(x, zeros()));
}

// Some columns of one value head's state in one sequence.
template <class T, int vectors>
struct Columns {
  const GatedDeltaParams& p;
  int64_t sequence, head, first;  // column

  const T* row(const ConstMatrix& m, int64_t t) const { return static_cast<const T*>(m.data) + t * m.row_stride; }
  int64_t left(int c) const { return p.value_dim - first - c * kLanes; }  // columns from vector c on

  // Head `head` of a row of queries or keys at unit length, times `scale`.
  void unit(const T* x, float scale, float* to) const {
    const float squares = sum_row(x, p.key_dim, [](F32x16 sum, F32x16 v) { return fma(v, v, sum); });
    const F32x16 factor = broadcast(scale / __builtin_sqrtf(squares + kUnitEps));
    for (int64_t i = 0; i < p.key_dim; i += kLanes) store(to + i, load_first(x + i, p.key_dim - i) * factor);
  }

  // Some columns of a state, whose rows are `stride` apart.
  struct Rows {
    float* data;
    int64_t stride;
    PYBATCH_INLINE float* at(int64_t row, int c) const { return data + row * stride + c * kLanes; }
  };

  // One token: from the state `from` to `to`, which may be the same.
  void step(Rows from, Rows to, const float* q, const float* k, float decay, float beta, const T* v, T* out) const {
    F32x16 even[vectors], odd[vectors];  // two chains each, to hide the latency of an addition
    for (int c = 0; c < vectors; ++c) even[c] = odd[c] = zeros();
    int64_t i = 0;
    for (; i + 2 <= p.key_dim; i += 2) {
      for (int c = 0; c < vectors; ++c) {
        even[c] = fma(load(from.at(i, c)), broadcast(k[i]), even[c]);
        odd[c] = fma(load(from.at(i + 1, c)), broadcast(k[i + 1]), odd[c]);
      }
    }
    if (i < p.key_dim) {
      for (int c = 0; c < vectors; ++c) even[c] = fma(load(from.at(i, c)), broadcast(k[i]), even[c]);
    }
    F32x16 delta[vectors], sum[vectors];
    for (int c = 0; c < vectors; ++c) {
      delta[c] = (load_first(v + c * kLanes, left(c)) - (even[c] + odd[c]) * broadcast(decay)) * broadcast(beta);
      sum[c] = zeros();
    }
    for (i = 0; i < p.key_dim; ++i) {
      for (int c = 0; c < vectors; ++c) {
        const F32x16 decayed = load(from.at(i, c)) * broadcast(decay);
        const F32x16 now = fma(broadcast(k[i]), delta[c], decayed);
        store(to.at(i, c), now);
        sum[c] = fma(now, broadcast(q[i]), sum[c]);
      }
    }
    for (int c = 0; c < vectors; ++c) store_first(out + c * kLanes, sum[c], left(c));
  }

  Rows state(int64_t slot) const {
    return {p.state + slot * p.state_stride + head * p.key_dim * p.state_width() + first, p.state_width()};
  }

  // to = from, or zeros.
  void copy(const Rows* from, Rows to) const {
    for (int64_t i = 0; i < p.key_dim; ++i) {
      for (int c = 0; c < vectors; ++c) store(to.at(i, c), from == nullptr ? zeros() : load(from->at(i, c)));
    }
  }

  void run() const {
    const StateBatch& batch = p.batch;
    const int64_t begin = batch.query_start[sequence], end = batch.query_start[sequence + 1];
    const int64_t key_head = head / (p.value_heads / p.key_heads), keys = p.key_heads * p.key_dim;
    auto out = [&](int64_t t) {
      return static_cast<T*>(p.out.data) + t * p.out.row_stride + head * p.value_dim + first;
    };
    if (batch.destination[sequence] < 0) {
      for (int64_t t = begin; t < end; ++t) {
        for (int c = 0; c < vectors; ++c) store_first(out(t) + c * kLanes, zeros(), left(c));
      }
      return;
    }
    // In a state of 128 columns these would share half of the first cache's sets: they lie side by side in a copy.
    alignas(64) float side_by_side[kMostKeyDim * vectors * kLanes];
    const Rows kept = state(batch.destination[sequence]);
    const Rows to = end - begin < kCopied ? kept : Rows{side_by_side, vectors * kLanes};
    Rows from = to;
    if (batch.source[sequence] < 0) {
      copy(nullptr, to);
    } else {
      from = state(batch.source[sequence]);
    }
    float q[kMostKeyDim], k[kMostKeyDim], a[kLanes], b[kLanes], decay[kLanes], beta[kLanes];
    const float q_scale = 1.0f / __builtin_sqrtf(static_cast<float>(p.key_dim));
    for (int64_t t = begin; t < end; ++t) {
      const int64_t lane = (t - begin) % kLanes;
      if (lane == 0) {  // the gates of sixteen tokens at once
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t row_of = t + i < end ? t + i : t;
          a[i] = to_number(row(p.a, row_of) + head);
          b[i] = to_number(row(p.b, row_of) + head);
        }
        const F32x16 step_size = softplus(load(a) + broadcast(p.dt_bias[head]));
        store(decay, exp(zeros() - broadcast(p.rate[head]) * step_size));
        store(beta, times_sigmoid(broadcast(1.0f), load(b)));
      }
      const T* x = row(p.qkv, t);
      unit(x + key_head * p.key_dim, q_scale, q);
      unit(x + keys + key_head * p.key_dim, 1.0f, k);
      const T* v = x + 2 * keys + head * p.value_dim + first;
      step(from, to, q, k, decay[lane], beta[lane], v, out(t));
      from = to;
    }
    if (to.data != kept.data) copy(&to, kept);
  }

 private:
  static float to_number(const T* x) {
    float lanes[kLanes];
    store(lanes, load_first(x, 1));
    return lanes[0];
  }
};

template <class T>
void run_columns(const GatedDeltaParams& p, int64_t sequence, int64_t head, int64_t first) {
  const int64_t left = (p.state_width() - first) / kLanes;
  switch (left < kVectors ? left : kVectors) {
    case 1: return Columns<T, 1>{p, sequence, head, first}.run();
    case 2: return Columns<T, 2>{p, sequence, head, first}.run();
    case 3: return Columns<T, 3>{p, sequence, head, first}.run();
    default: return Columns<T, kVectors>{p, sequence, head, first}.run();
  }
}

}  // namespace

void gated_delta_rule(const GatedDeltaParams& p) {
  const int64_t slices = (p.state_width() + kColumns - 1) / kColumns;
  with_float_type(p.qkv.dtype, [&]<class T>(T*) {
    const int64_t grain = 1 + 8 * p.batch.sequences / p.batch.tokens;
    parallel_for(p.batch.sequences * p.value_heads * slices, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        run_columns<T>(p, i / slices / p.value_heads, i / slices % p.value_heads, i % slices * kColumns);
      }
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
