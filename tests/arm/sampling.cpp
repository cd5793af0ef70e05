// Penalties, draws and log-probabilities.
#include <numeric>

#include "check.h"

namespace check {
namespace {

constexpr int64_t kRows = 12, kVocab = 1003;

void check_scale_logits(Random& random) {
  const Array logits(DType::f32, kRows * kVocab, random, 40);
  for (double cap : {0.0, 30.0}) {
    auto run = [&](int64_t first, int64_t count, Array& out) {
      std::memcpy(out.data(), logits.data() + first * kVocab * 4, static_cast<size_t>(count * kVocab * 4));
      cpu::kernels().scale_logits({out.as<float>(), kVocab, count, kVocab, 0.75f, static_cast<float>(cap)});
    };
    const std::string name = cap > 0 ? "scale_logits capped" : "scale_logits";
    check_rows(name, kRows, kVocab, DType::f32, run, [&](int64_t r, int64_t c) -> Near {
      const double x = 0.75 * logits[r * kVocab + c];
      return {cap > 0 ? cap * std::tanh(x / cap) : x, 2e-5};
    });
  }
}

void check_adjust_logits(Random& random) {
  const Array logits(DType::f32, kRows * kVocab, random, 4);
  Array repetition(DType::f32, kRows), presence(DType::f32, kRows, random), frequency(DType::f32, kRows, random);
  std::vector<int64_t> history, history_start = {0}, output_start, bias_ids, bias_start = {0};
  std::vector<float> bias_values;
  for (int64_t r = 0; r < kRows; ++r) {
    repetition.set(r, r % 3 == 0 ? 1.0 : 1.0 + std::fabs(random.uniform()));
    for (int i = 0; i < 30; ++i) history.push_back(random.below(40));
    output_start.push_back(static_cast<int64_t>(history.size()) - 12);
    history_start.push_back(static_cast<int64_t>(history.size()));
    for (int64_t i = 0; i < r % 4; ++i) {
      bias_ids.push_back(i * 9);
      bias_values.push_back(static_cast<float>(random.number()));
    }
    bias_start.push_back(static_cast<int64_t>(bias_ids.size()));
  }
  auto run = [&](int64_t first, int64_t count, Array& out) {
    std::memcpy(out.data(), logits.data() + first * kVocab * 4, static_cast<size_t>(count * kVocab * 4));
    cpu::kernels().adjust_logits({out.as<float>(), kVocab, count, kVocab, repetition.as<float>() + first,
                                  presence.as<float>() + first, frequency.as<float>() + first, history.data(),
                                  history_start.data() + first, output_start.data() + first, bias_ids.data(),
                                  bias_values.data(), bias_start.data() + first});
  };
  check_rows("adjust_logits", kRows, kVocab, DType::f32, run, [&](int64_t r, int64_t c) -> Near {
    const auto row = static_cast<size_t>(r);
    double x = logits[r * kVocab + c];
    for (int64_t i = bias_start[row]; i < bias_start[row + 1]; ++i) {
      if (bias_ids[static_cast<size_t>(i)] == c) x += static_cast<double>(bias_values[static_cast<size_t>(i)]);
    }
    int seen = 0, written = 0;
    for (int64_t i = history_start[row]; i < history_start[row + 1]; ++i) {
      if (history[static_cast<size_t>(i)] != c) continue;
      ++seen;
      written += i >= output_start[row];
    }
    if (seen > 0) x = x > 0 ? x / repetition[r] : x * repetition[r];
    if (written > 0) x -= presence[r] + frequency[r] * written;
    return {x, 1e-5};
  });
}

// Token ids and log-probabilities of rows of logits, in descending order.
std::vector<int64_t> in_order(const Array& logits, int64_t row) {
  std::vector<int64_t> ids(kVocab);
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int64_t a, int64_t b) { return logits[row * kVocab + a] > logits[row * kVocab + b]; });
  return ids;
}

void check_sample(const Array& logits) {
  constexpr int64_t kWords = (kVocab + 31) / 32;
  std::vector<float> temperature, top_p, min_p;
  std::vector<int64_t> top_k, seeds, positions, mask_rows;
  for (int64_t r = 0; r < kRows; ++r) {
    temperature.push_back(r % 3 == 0 ? 0.0f : 0.8f);
    top_k.push_back(r % 3 == 1 ? 1 : r);
    top_p.push_back(r % 2 == 0 ? 1.0f : 0.9f);
    min_p.push_back(r % 4 == 0 ? 0.0f : 0.05f);
    seeds.push_back(r * 1000003);
    positions.push_back(r * r);
    mask_rows.push_back(r % 4 < 2 ? -1 : 0);
  }
  std::vector<uint32_t> mask(kWords, 0xaaaaaaaa);  // odd tokens
  auto run = [&](int64_t first, int64_t count, Array& out) {
    std::vector<int64_t> drawn(static_cast<size_t>(count));
    SampleParams p{};
    p.logits = reinterpret_cast<const float*>(logits.data()) + first * kVocab;
    p.row_stride = p.vocab = kVocab;
    p.rows = count;
    p.temperature = temperature.data() + first;
    p.top_k = top_k.data() + first;
    p.top_p = top_p.data() + first;
    p.min_p = min_p.data() + first;
    p.seeds = seeds.data() + first;
    p.positions = positions.data() + first;
    p.masks = mask.data();
    p.mask_rows = mask_rows.data() + first;
    p.out = drawn.data();
    cpu::kernels().sample(p);
    for (int64_t i = 0; i < count; ++i) out.set(i, static_cast<double>(drawn[static_cast<size_t>(i)]));
  };
  check_rows("sample", kRows, 1, DType::f32, run, [&](int64_t r, int64_t) -> Near {
    if (r % 3 == 2) return {kVocab / 2.0, kVocab / 2.0};
    for (int64_t id : in_order(logits, r)) {
      if (mask_rows[static_cast<size_t>(r)] < 0 || id % 2 == 1) return {static_cast<double>(id), 0};
    }
    return {-1, 0};
  });
}

void check_token_logprobs(const Array& logits) {
  constexpr int64_t kTop = 5, kWidth = 2 + 2 * kTop;
  std::vector<int64_t> tokens;
  for (int64_t r = 0; r < kRows; ++r) tokens.push_back(r * 83 % kVocab);
  auto run = [&](int64_t first, int64_t count, Array& out) {
    Array logprob(DType::f32, count), top_logprobs(DType::f32, count * kTop);
    std::vector<int64_t> rank(static_cast<size_t>(count)), top_ids(static_cast<size_t>(count * kTop));
    cpu::kernels().token_logprobs({reinterpret_cast<const float*>(logits.data()) + first * kVocab, kVocab, count,
                                   kVocab, tokens.data() + first, kTop, logprob.as<float>(), rank.data(),
                                   top_ids.data(), top_logprobs.as<float>()});
    for (int64_t r = 0; r < count; ++r) {
      out.set(r * kWidth, logprob[r]);
      out.set(r * kWidth + 1, static_cast<double>(rank[static_cast<size_t>(r)]));
      for (int64_t i = 0; i < kTop; ++i) {
        out.set(r * kWidth + 2 + i, static_cast<double>(top_ids[static_cast<size_t>(r * kTop + i)]));
        out.set(r * kWidth + 2 + kTop + i, top_logprobs[r * kTop + i]);
      }
    }
  };
  check_rows("token_logprobs", kRows, kWidth, DType::f32, run, [&](int64_t r, int64_t c) -> Near {
    const std::vector<int64_t> ids = in_order(logits, r);
    const double most = logits[r * kVocab + ids[0]];
    double sum = 0;
    for (int64_t id = 0; id < kVocab; ++id) sum += std::exp(logits[r * kVocab + id] - most);
    auto logprob = [&](int64_t id) -> Near { return {logits[r * kVocab + id] - most - std::log(sum), 1e-5}; };
    const int64_t token = tokens[static_cast<size_t>(r)];
    if (c == 0) return logprob(token);
    if (c == 1) return {static_cast<double>(std::find(ids.begin(), ids.end(), token) - ids.begin() + 1), 0};
    if (c < 2 + kTop) return {static_cast<double>(ids[static_cast<size_t>(c - 2)]), 0};
    return logprob(ids[static_cast<size_t>(c - 2 - kTop)]);
  });
}

}  // namespace

void check_sampling() {
  Random random(5);
  check_scale_logits(random);
  check_adjust_logits(random);
  const Array logits(DType::f32, kRows * kVocab, random, 3);
  check_sample(logits);
  check_token_logprobs(logits);
}

}  // namespace check
