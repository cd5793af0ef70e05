// Convolutions over time, gated delta rule, gated norm. A row of check_rows is a sequence here.
#include "check.h"

namespace check {
namespace {

constexpr int64_t kSequences = 3, kTokens = 9;

// Sequences of kTokens tokens, each with a state of its own: in two pieces, or in one if `cut` is 0.
template <class Call>
void in_pieces(int64_t sequences, int64_t cut, const Call& call) {
  std::vector<int32_t> none(static_cast<size_t>(sequences), -1), first, second;
  for (int32_t s = 0; s < sequences; ++s) {
    first.push_back(2 * s);
    second.push_back(2 * s + 1);
  }
  auto piece = [&](int64_t s, int64_t begin, int64_t count, const int32_t* source, const int32_t* destination) {
    const int32_t starts[] = {0, static_cast<int32_t>(count)};
    call(s * kTokens + begin, StateBatch{starts, source + s, destination + s, 1, count});
  };
  if (cut == 0) {
    std::vector<int32_t> starts;
    for (int64_t s = 0; s <= sequences; ++s) starts.push_back(static_cast<int32_t>(s * kTokens));
    return call(0, StateBatch{starts.data(), none.data(), first.data(), sequences, sequences * kTokens});
  }
  for (int64_t s = 0; s < sequences; ++s) {
    piece(s, 0, cut, none.data(), first.data());
    piece(s, cut, kTokens - cut, first.data(), second.data());
  }
}

template <class Run, class Wanted>
void check_pieces(const std::string& name, int64_t width, DType dtype, const Run& run, const Wanted& wanted) {
  check_rows(
      name, kSequences, kTokens * width, dtype,
      [&](int64_t first, int64_t count, Array& out) { run(first, count, 0, out); }, wanted);
  Array whole(dtype, kSequences * kTokens * width), pieces(dtype, whole.size);
  run(0, kSequences, 0, whole);
  run(0, kSequences, 4, pieces);
  expect_same(name, "the result in pieces", pieces, 0, whole, 0, whole.size);
}

double silu(double x) { return x / (1 + std::exp(-x)); }

void check_convolutions(Random& random) {
  constexpr int64_t kTaps = 4;
  for (DType dtype : kFloats) {
    for (int64_t channels : {5, 64}) {
      const Array x(dtype, kSequences * kTokens * channels, random), weight(dtype, kTaps * channels, random);
      auto run = [&](int64_t first, int64_t count, int64_t cut, Array& out) {
        Array state(dtype, 2 * count * (kTaps - 1) * channels);
        in_pieces(count, cut, [&](int64_t row, const StateBatch& batch) {
          const int64_t in_row = first * kTokens + row, bytes = channels * size_of(dtype);
          cpu::kernels().causal_conv({{x.data() + in_row * bytes, channels, dtype},
                                      {out.data() + row * bytes, channels, dtype},
                                      weight.data(),
                                      state.data(),
                                      (kTaps - 1) * channels,
                                      channels,
                                      kTaps,
                                      batch});
        });
      };
      check_pieces(std::string("causal_conv ") + name_of(dtype) + " " + std::to_string(channels), channels, dtype, run,
                   [&](int64_t s, int64_t i) -> Near {
                     double sum = 0, size = 0;
                     for (int64_t j = 0; j < kTaps; ++j) {
                       const int64_t t = i / channels - kTaps + 1 + j, c = i % channels;
                       const double product =
                           t < 0 ? 0 : x[(s * kTokens + t) * channels + c] * weight[j * channels + c];
                       sum += product;
                       size += std::fabs(product);
                     }
                     return {silu(sum), (size + 0.01) * (2 * rounding(dtype) + 4e-6)};
                   });
    }
  }
}

void check_delta_rule(Random& random) {
  constexpr int64_t kKeyHeads = 1, kHeads = 2;
  for (DType dtype : kFloats) {
    for (const auto& [key_dim, value_dim] : {std::pair<int64_t, int64_t>{8, 16}, {33, 70}}) {
      const int64_t width = 2 * kKeyHeads * key_dim + kHeads * value_dim, tokens = kSequences * kTokens;
      const Array qkv(dtype, tokens * width, random), a(dtype, tokens * kHeads, random, 3),
          b(dtype, tokens * kHeads, random, 2);
      const float rate[] = {0.1f, 2.0f}, dt_bias[] = {0.5f, -1.0f};
      const int64_t key_size = key_dim, value_size = value_dim;
      auto run = [&](int64_t first, int64_t count, int64_t cut, Array& out) {
        GatedDeltaParams p{};
        p.rate = rate;
        p.dt_bias = dt_bias;
        p.key_heads = kKeyHeads;
        p.value_heads = kHeads;
        p.key_dim = key_size;
        p.value_dim = value_size;
        p.state_stride = kHeads * key_size * p.state_width();
        Array state(DType::f32, 2 * count * p.state_stride);
        p.state = state.as<float>();
        in_pieces(count, cut, [&](int64_t row, const StateBatch& batch) {
          const int64_t in_row = first * kTokens + row, bytes = size_of(dtype);
          p.qkv = {qkv.data() + in_row * width * bytes, width, dtype};
          p.a = {a.data() + in_row * kHeads * bytes, kHeads, dtype};
          p.b = {b.data() + in_row * kHeads * bytes, kHeads, dtype};
          p.out = {out.data() + row * kHeads * value_size * bytes, kHeads * value_size, dtype};
          p.batch = batch;
          cpu::kernels().gated_delta_rule(p);
        });
      };
      std::vector<double> wanted(static_cast<size_t>(tokens * kHeads * value_size));
      for (int64_t s = 0; against_float64 && s < kSequences; ++s) {
        for (int64_t h = 0; h < kHeads; ++h) {
          std::vector<double> state(static_cast<size_t>(key_size * value_size));
          for (int64_t t = s * kTokens; t < (s + 1) * kTokens; ++t) {
            double q_square = 1e-6, k_square = 1e-6;
            for (int64_t i = 0; i < key_size; ++i) {
              q_square += qkv[t * width + i] * qkv[t * width + i];
              k_square += qkv[t * width + key_size + i] * qkv[t * width + key_size + i];
            }
            auto q = [&](int64_t i) {
              return qkv[t * width + i] / std::sqrt(q_square * static_cast<double>(key_size));
            };
            auto k = [&](int64_t i) { return qkv[t * width + key_size + i] / std::sqrt(k_square); };
            const double step = std::log1p(std::exp(a[t * kHeads + h] + static_cast<double>(dt_bias[h])));
            const double decay = std::exp(-static_cast<double>(rate[h]) * step);
            const double beta = 1 / (1 + std::exp(-b[t * kHeads + h]));
            for (int64_t j = 0; j < value_size; ++j) {
              double found = 0, sum = 0;
              for (int64_t i = 0; i < key_size; ++i) {
                found += (state[static_cast<size_t>(i * value_size + j)] *= decay) * k(i);
              }
              const double error = (qkv[t * width + 2 * key_size + h * value_size + j] - found) * beta;
              for (int64_t i = 0; i < key_size; ++i) {
                sum += (state[static_cast<size_t>(i * value_size + j)] += k(i) * error) * q(i);
              }
              wanted[static_cast<size_t>((t * kHeads + h) * value_size + j)] = sum;
            }
          }
        }
      }
      check_pieces(std::string("gated_delta_rule ") + name_of(dtype) + " " + std::to_string(value_size),
                   kHeads * value_size, dtype, run, [&](int64_t s, int64_t i) -> Near {
                     const double value = wanted[static_cast<size_t>(s * kTokens * kHeads * value_size + i)];
                     return {value, (std::fabs(value) + 0.3) * (2 * rounding(dtype) + 4e-6)};
                   });
    }
  }
}

void check_gates(Random& random) {
  constexpr int64_t kRows = 5, kHeads = 2, kDim = 20, kWidth = kHeads * kDim;
  for (DType dtype : kFloats) {
    const Array x(dtype, kRows * kWidth, random), gate(dtype, kRows * kWidth, random, 2), weight(dtype, kDim, random);
    auto rows = [&](const Array& of, int64_t first) -> ConstMatrix {
      return {of.data() + first * kWidth * size_of(dtype), kWidth, dtype};
    };
    check_rows(
        std::string("gated_rms_norm ") + name_of(dtype), kRows, kWidth, dtype,
        [&](int64_t first, int64_t count, Array& out) {
          cpu::kernels().gated_rms_norm({rows(x, first),
                                         rows(gate, first),
                                         {out.data(), kWidth, dtype},
                                         weight.data(),
                                         1e-5f,
                                         count,
                                         kHeads,
                                         kDim});
        },
        [&](int64_t r, int64_t c) -> Near {
          double square = 0;
          for (int64_t i = c / kDim * kDim; i < (c / kDim + 1) * kDim; ++i) {
            square += x[r * kWidth + i] * x[r * kWidth + i] / static_cast<double>(kDim);
          }
          const double normed = x[r * kWidth + c] / std::sqrt(square + 1e-5) * weight[c % kDim];
          const double wanted = normed * silu(gate[r * kWidth + c]);
          return {wanted, (std::fabs(wanted) + 0.01) * (4 * rounding(dtype) + 4e-6)};
        });
    check_rows(
        std::string("sigmoid_mul ") + name_of(dtype), kRows, kWidth, dtype,
        [&](int64_t first, int64_t count, Array& out) {
          cpu::kernels().sigmoid_mul({rows(x, first), rows(gate, first), {out.data(), kWidth, dtype}, count, kWidth});
        },
        [&](int64_t r, int64_t c) -> Near {
          const double wanted = x[r * kWidth + c] / (1 + std::exp(-gate[r * kWidth + c]));
          return {wanted, std::fabs(wanted) * (2 * rounding(dtype) + 4e-6) + 1e-7};
        });
  }
}

}  // namespace

void check_linear_attention() {
  Random random(6);
  check_convolutions(random);
  check_delta_rule(random);
  check_gates(random);
}

}  // namespace check
