// Passes over one row of logits: the largest, the k largest, the fewest that hold a given mass. Tokens are in order of
// their logits, the larger first, and then of their ids, the lower first. NaN counts as -inf, +inf as the largest
// float. A token that a row's mask forbids counts as one of logit -inf.
#pragma once

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

constexpr float kNever = -__builtin_inff();  // the logit of an impossible token

struct LogitRow {
  const float* logits;
  int64_t vocab;
  const uint32_t* mask = nullptr;  // bit i % 32 of word i / 32: token i is allowed; null: all are

  PYBATCH_INLINE bool allows(int64_t id) const { return mask == nullptr || (mask[id / 32] >> (id % 32) & 1) != 0; }

  PYBATCH_INLINE float at(int64_t id) const {
    const float x = allows(id) ? logits[id] : kNever;
    return x > kNever ? (x < __FLT_MAX__ ? x : __FLT_MAX__) : kNever;
  }

  // The logits of tokens i .. i + 15, i a multiple of 16; past the vocabulary they are -inf.
  PYBATCH_INLINE F32x16 load(int64_t i) const {
    uint32_t lanes = mask == nullptr ? 0xffff : mask[i / 32] >> (i % 32) & 0xffff;
    if (lanes == 0) return broadcast(kNever);
    if (vocab - i < kLanes) lanes &= (1u << (vocab - i)) - 1;
    const F32x16 x = max(load_first(logits + i, vocab - i), broadcast(kNever));  // max(NaN, y) is y
    return min(lanes == 0xffff ? x : select_lanes(lanes, x, broadcast(kNever)), broadcast(__FLT_MAX__));
  }
};

PYBATCH_INLINE float largest_logit(const LogitRow& row) {
  F32x16 largest = broadcast(kNever);
  for (int64_t i = 0; i < row.vocab; i += kLanes) largest = max(largest, row.load(i));
  return reduce_max(largest);
}

// A token's unscaled probability, exp((x - largest) / temperature): 1 for the largest.
PYBATCH_INLINE F32x16 softmax_weights(F32x16 x, float largest, float temperature) {
  F32x16 t = (x - broadcast(largest)) / broadcast(temperature);
  return exp(max(t, broadcast(kNever)));  // -inf / inf is NaN
}

constexpr int64_t kMassBlock = 512;  // tokens whose weights are summed in fp32; beyond, the sum is fp64

PYBATCH_INLINE double total_weight(const LogitRow& row, float largest, float temperature) {
  double total = 0;
  for (int64_t begin = 0; begin < row.vocab; begin += kMassBlock) {
    int64_t end = begin + kMassBlock < row.vocab ? begin + kMassBlock : row.vocab;
    F32x16 sum = zeros();
    for (int64_t i = begin; i < end; i += kLanes) {
      sum = sum + softmax_weights(row.load(i), largest, temperature);
    }
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

// A place in the order of tokens.
struct Place {
  float logit;
  int64_t id;
};

// What the logits of tokens i .. i + 15 must reach to be at the place or before it.
PYBATCH_INLINE F32x16 limit_at(Place place, int64_t i) {
  int64_t ties = place.id + 1 - i;
  ties = ties < 0 ? 0 : ties > kLanes ? kLanes : ties;
  return select_first(ties, broadcast(place.logit), broadcast(__builtin_nextafterf(place.logit, __builtin_inff())));
}

// A token as one integer that is larger the earlier the token comes, and what it adds to a selection's total.
struct Candidate {
  uint64_t key;
  double weight;
};

PYBATCH_INLINE uint64_t key_of(Place place) {
  uint32_t bits = as_bits(place.logit + 0.0f);  // -0 to +0
  uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xffffffffu - static_cast<uint32_t>(place.id));
}

PYBATCH_INLINE Place place_of(uint64_t key) {
  uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return {as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered), 0xffffffffu - static_cast<uint32_t>(key)};
}

// Moves to the front the fewest of the earliest candidates whose weights reach `target` (all, if they never do) and
// returns how many; the last of them is the latest. Halves the range of keys each round, so no input is slow.
inline int64_t select(Candidate* items, int64_t count, double target) {
  int64_t begin = 0, end = count;  // those before begin are in, those from end on are out
  double taken = 0;
  while (end - begin > 1) {
    uint64_t low = items[begin].key, high = low;
    for (int64_t i = begin + 1; i < end; ++i) {
      low = items[i].key < low ? items[i].key : low;
      high = items[i].key > high ? items[i].key : high;
    }
    uint64_t pivot = low + (high - low + 1) / 2;
    int64_t middle = begin;
    double upper = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (items[i].key < pivot) continue;
      upper += items[i].weight;
      Candidate item = items[i];
      items[i] = items[middle];
      items[middle++] = item;
    }
    if (taken + upper >= target) {
      end = middle;
    } else {
      begin = middle;
      taken += upper;
    }
  }
  return end;
}

// Room that collect() needs.
constexpr int64_t candidate_capacity(int64_t k, int64_t vocab) {
  return (2 * k + 1024 < vocab ? 2 * k + 1024 : vocab) + kLanes;
}

// The tokens whose logit is at least `limit`, each with weight 1, or the k earliest of them if there are more. Returns
// how many; only when exactly k were selected is the last of them sure to be the latest.
inline int64_t collect(const LogitRow& row, float limit, int64_t k, Candidate* items) {
  const int64_t capacity = candidate_capacity(k, row.vocab);
  int64_t count = 0;
  for (int64_t i = 0; i < row.vocab; i += kLanes) {
    int64_t n = row.vocab - i;
    F32x16 x = row.load(i);
    uint32_t lanes = lanes_at_least(x, broadcast(limit));
    if (n < kLanes) lanes &= (1u << n) - 1;
    if (lanes == 0) continue;
    if (count + kLanes > capacity) {
      count = select(items, count, static_cast<double>(k));
      limit = place_of(items[count - 1].key).logit;
    }
    float values[kLanes];
    store(values, x);
    for (; lanes != 0; lanes &= lanes - 1) {
      int lane = __builtin_ctz(lanes);
      items[count++] = {key_of({values[lane], i + lane}), 1.0};
    }
  }
  return count > k ? select(items, count, static_cast<double>(k)) : count;
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
