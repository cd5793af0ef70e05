#include "cpu/exponentials.h"
#include "cpu/logits.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/sampling.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

int64_t first_at_least(const LogitRow& row, float limit) {
  for (int64_t i = 0; i < row.vocab; i += kLanes) {
    uint32_t lanes = lanes_at_least(row.load(i), broadcast(limit));
    if (lanes != 0) return i + __builtin_ctz(lanes);
  }
  return 0;
}

Place last_kept(const LogitRow& row, float largest, float temperature, int64_t top_k, float top_p) {
  const int64_t vocab = row.vocab;
  const bool by_count = top_k > 0 && top_k < vocab;
  const int64_t k = by_count ? top_k : vocab;
  double mass = 0;
  float limit = kNever;
  if (!by_count) {
    if (top_p >= 1) return {kNever, vocab};
    // Tokens below (1 - top_p) / vocab of the mass hold less than 1 - top_p together, so top_p keeps none of them. The
    // half is a margin for rounding.
    mass = total_weight(row, largest, temperature);
    double least = 0.5 * (1.0 - static_cast<double>(top_p)) * mass / static_cast<double>(vocab);
    limit = static_cast<float>(static_cast<double>(largest) + static_cast<double>(temperature) * __builtin_log(least));
  }
  int64_t bytes = candidate_capacity(k, vocab) * static_cast<int64_t>(sizeof(Candidate));
  auto* items = static_cast<Candidate*>(thread_scratch(0, bytes));
  int64_t count = collect(row, limit, k, items);
  if (top_p < 1) {
    double sum = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
      float x[kLanes], w[kLanes];
      int64_t n = count - i < kLanes ? count - i : kLanes;
      for (int64_t j = 0; j < n; ++j) x[j] = place_of(items[i + j].key).logit;
      store(w, softmax_weights(load_first(x, n), largest, temperature));
      for (int64_t j = 0; j < n; ++j) sum += items[i + j].weight = static_cast<double>(w[j]);
    }
    count = select(items, count, static_cast<double>(top_p) * (by_count ? sum : mass));
  }
  return place_of(items[count - 1].key);
}

// A row's softmax after the cuts, each of which keeps a prefix of the tokens' order.
struct Distribution {
  LogitRow row;
  float largest, temperature;
  Place last;        // the last token that top_k and top_p keep
  float min_weight;  // the least weight that min_p keeps

  // Of tokens with these logits, the ties with `last` among them counted in.
  PYBATCH_INLINE F32x16 weights(F32x16 x) const {
    F32x16 w = zero_where_below(x, broadcast(last.logit), softmax_weights(x, largest, temperature));
    return zero_where_below(w, broadcast(min_weight), w);
  }
};

// In whole vectors.
constexpr int64_t num_groups(int64_t vocab) { return (vocab + kGroup * kLanes - 1) / (kGroup * kLanes) * kLanes; }

// The largest logit of each group of tokens, and of all.
float group_maxima(const LogitRow& row, float* maxima) {
  F32x16 largest = broadcast(kNever);
  for (int64_t begin = 0; begin < row.vocab; begin += kGroup * kLanes) {
    const int64_t end = begin + kGroup * kLanes < row.vocab ? begin + kGroup * kLanes : row.vocab;
    F32x16 most = broadcast(kNever);
    for (int64_t i = begin; i < end; i += kLanes) most = max(most, row.load(i));
    store(maxima + begin / kGroup, most);
    largest = max(largest, most);
  }
  return reduce_max(largest);
}

// The race of sampling.h. Most groups are ruled out together by the least time that any token of them can have.
class Race {
 public:
  Race(const Distribution& distribution, uint64_t seed, uint64_t position)
      : distribution_(distribution), philox_{seed, position} {}

  int64_t first(const float* maxima) {
    for (int64_t group = 0; group < num_groups(distribution_.row.vocab); group += kLanes) {
      const F32x16 most = load(maxima + group);
      if (lanes_at_least(most, broadcast(distribution_.last.logit)) == 0) continue;
      int32_t words[2][kLanes];
      const F32x16 least = least_times(group, words);
      const F32x16 reach = distribution_.weights(most) * broadcast(1.001f * score_of(best_));
      for (uint32_t lanes = lanes_at_least(reach, least); lanes != 0; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        run(group + lane, static_cast<uint32_t>(words[0][lane]), static_cast<uint32_t>(words[1][lane]));
      }
    }
    return static_cast<int64_t>(best_ & 0xffffffffu);
  }

 private:
  static float score_of(uint64_t key) { return as_float(static_cast<uint32_t>(key >> 32)); }

  // The random words of 16 groups, and what the first time of each is at least: -log(1 - u) >= u.
  PYBATCH_INLINE F32x16 least_times(int64_t group, int32_t (&words)[2][kLanes]) const {
    I32x16 w[2];
    philox_.lanes(group, w);
    for (int i = 0; i < 2; ++i) store(words[i], w[i]);
    return to_float(w[0] >> 8) * broadcast(0x1p-24f / kGroup);
  }

  // The tokens of one group.
  void run(int64_t group, uint32_t time, uint32_t who) {
    const LogitRow& row = distribution_.row;
    const int64_t begin = group / kLanes * (kGroup * kLanes) + group % kLanes;
    const double first = exponential(time) / kGroup;
    float x[kGroup], w[kGroup];
    for (int64_t i = 0; i < kGroup; ++i) {
      const int64_t id = begin + i * kLanes;
      x[i] = id < row.vocab ? row.at(id) : kNever;
    }
    store(w, distribution_.weights(load(x)));
    for (int64_t i = 0; i < kGroup; ++i) {
      const int64_t id = begin + i * kLanes;
      const auto weight = static_cast<double>(w[i]);
      if (weight == 0 || (x[i] == distribution_.last.logit && id > distribution_.last.id)) continue;
      if (static_cast<float>(first / weight) > score_of(best_)) continue;
      const double rest = i == first_of(who) ? 0.0 : exponential(philox_.word(id));
      const auto score = static_cast<float>((first + rest) / weight);
      const uint64_t key = static_cast<uint64_t>(as_bits(score)) << 32 | static_cast<uint64_t>(id);
      best_ = key < best_ ? key : best_;
    }
  }

  Distribution distribution_;
  Philox philox_;
  uint64_t best_ = static_cast<uint64_t>(as_bits(__builtin_inff())) << 32;  // score and id, smaller the better
};

// -1 where the token is none that can be drawn.
int64_t drawn(const LogitRow& row, int64_t token) {
  return row.allows(token) && __builtin_isfinite(row.logits[token]) ? token : -1;
}

int64_t sample_row(const SampleParams& p, int64_t r) {
  LogitRow row{p.logits + r * p.row_stride, p.vocab};
  if (p.masks != nullptr && p.mask_rows[r] >= 0) row.mask = p.masks + p.mask_rows[r] * ((p.vocab + 31) / 32);
  const float temperature = p.temperature[r];
  if (temperature == 0) return drawn(row, first_at_least(row, largest_logit(row)));
  auto* maxima = static_cast<float*>(thread_scratch(1, num_groups(p.vocab) * static_cast<int64_t>(sizeof(float))));
  const float largest = group_maxima(row, maxima);
  if (largest == kNever) return -1;
  const Place last = last_kept(row, largest, temperature, p.top_k[r], p.top_p[r]);
  Race race({row, largest, temperature, last, p.min_p[r]}, static_cast<uint64_t>(p.seeds[r]),
            static_cast<uint64_t>(p.positions[r]));
  return drawn(row, race.first(maxima));
}

}  // namespace

void sample(const SampleParams& p) {
  parallel_for(p.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) p.out[row] = sample_row(p, row);
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
