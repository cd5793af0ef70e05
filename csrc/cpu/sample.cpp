#include "cpu/kernels.h"
#include "cpu/logits.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"
#include "pybatch/sampling.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

// A number in [0, 1) of 53 bits: the first two words of Philox4x32-10 (Salmon et al. 2011), keyed by the seed, at
// counter (position, 0).
double uniform(uint64_t seed, uint64_t position) {
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
                        static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
    std::memcpy(c, next, sizeof c);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{c[0]} << 32 | c[1]) >> 11) * 0x1p-53;
}

// A row's softmax after the cuts, each of which keeps a prefix of the tokens' order.
struct Distribution {
  LogitRow row;
  float largest, temperature;
  Place last;        // the last token that top_k and top_p keep
  float min_weight;  // the least weight that min_p keeps

  PYBATCH_INLINE F32x16 weights(int64_t i) const {
    F32x16 x = row.load(i), limit = limit_at(last, i);
    if (lanes_at_least(x, limit) == 0) return zeros();
    F32x16 w = zero_where_below(x, limit, softmax_weights(x, largest, temperature));
    return zero_where_below(w, broadcast(min_weight), w);
  }
};

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

// The token at which the running sum of weights, in id order, passes u of the total. Sums of blocks find the block,
// whose weights are then computed again.
int64_t draw(const Distribution& distribution, double u) {
  const int64_t vocab = distribution.row.vocab, blocks = (vocab + kMassBlock - 1) / kMassBlock;
  auto* mass = static_cast<double*>(thread_scratch(1, blocks * static_cast<int64_t>(sizeof(double))));
  double total = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t end = (b + 1) * kMassBlock < vocab ? (b + 1) * kMassBlock : vocab;
    F32x16 sum = zeros();
    for (int64_t i = b * kMassBlock; i < end; i += kLanes) sum = sum + distribution.weights(i);
    total += mass[b] = static_cast<double>(reduce_add(sum));
  }
  // Rounding may leave the sum just short of the target: then the last token with any weight is taken.
  const double target = u * total;
  double before = 0;
  int64_t block = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    if (mass[b] == 0) continue;
    block = b;
    if (before + mass[b] > target) break;
    before += mass[b];
  }
  int64_t token = 0, end = (block + 1) * kMassBlock < vocab ? (block + 1) * kMassBlock : vocab;
  for (int64_t i = block * kMassBlock; i < end; i += kLanes) {
    float w[kLanes];
    store(w, distribution.weights(i));
    for (int64_t j = 0; j < kLanes; ++j) {
      if (w[j] == 0) continue;
      token = i + j;
      before += static_cast<double>(w[j]);
      if (before > target) return token;
    }
  }
  return token;
}

// -1 where no token can be drawn.
int64_t sample_row(const SampleParams& p, int64_t r) {
  LogitRow row{p.logits + r * p.row_stride, p.vocab};
  if (p.masks != nullptr && p.mask_rows[r] >= 0) row.mask = p.masks + p.mask_rows[r] * ((p.vocab + 31) / 32);
  const float temperature = p.temperature[r], largest = largest_logit(row);
  int64_t token = 0;
  if (temperature == 0 || largest == kNever) {
    token = first_at_least(row, largest);
  } else {
    Place last = last_kept(row, largest, temperature, p.top_k[r], p.top_p[r]);
    token = draw({row, largest, temperature, last, p.min_p[r]},
                 uniform(static_cast<uint64_t>(p.seeds[r]), static_cast<uint64_t>(p.positions[r])));
  }
  return row.allows(token) && __builtin_isfinite(row.logits[token]) ? token : -1;
}

}  // namespace

void sample(const SampleParams& p) {
  parallel_for(p.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) p.out[row] = sample_row(p, row);
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
