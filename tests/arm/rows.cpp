// Norms, activations, embeddings of plain rows, and the ceilings' loop.
#include "check.h"

namespace check {
namespace {

void check_norms(Random& random) {
  for (DType dtype : kFloats) {
    for (int64_t width : {5, 64, 203}) {
      constexpr int64_t kRows = 7;
      const Array x(dtype, kRows * width, random, 4), before(dtype, kRows * width, random, 2);
      Array weight(dtype, width, random), bias(dtype, width, random);
      for (bool layer : {false, true}) {
        for (bool residual : {false, true}) {
          const std::string name = std::string(layer ? "layer_norm" : "rms_norm") + (residual ? " residual " : " ") +
                                   name_of(dtype) + " " + std::to_string(width);
          const float eps = 1e-5f;
          auto run = [&](int64_t first, int64_t count, Array& out) {
            Array sum(dtype, count * width);
            std::memcpy(sum.data(), before.data() + first * width * size_of(dtype),
                        static_cast<size_t>(count * width * size_of(dtype)));
            const NormParams p{{x.data() + first * width * size_of(dtype), width, dtype},
                               {residual ? sum.data() : nullptr, width, dtype},
                               {out.data(), width, dtype},
                               weight.data(),
                               layer ? bias.data() : nullptr,
                               eps,
                               count,
                               width};
            (layer ? cpu::kernels().layer_norm : cpu::kernels().rms_norm)(p);
          };
          std::vector<double> wanted(static_cast<size_t>(kRows * width)), size(wanted);
          for (int64_t r = 0; r < kRows; ++r) {
            Array in(dtype, width);
            for (int64_t c = 0; c < width; ++c) in.set(c, x[r * width + c] + (residual ? before[r * width + c] : 0));
            double mean = 0, square = 0;
            for (int64_t c = 0; c < width && layer; ++c) mean += in[c] / static_cast<double>(width);
            for (int64_t c = 0; c < width; ++c) square += (in[c] - mean) * (in[c] - mean) / static_cast<double>(width);
            const double scale = 1 / std::sqrt(square + static_cast<double>(eps));
            for (int64_t c = 0; c < width; ++c) {
              const double normed = (in[c] - mean) * scale * weight[c], shift = layer ? bias[c] : 0;
              wanted[static_cast<size_t>(r * width + c)] = normed + shift;
              size[static_cast<size_t>(r * width + c)] = std::fabs(normed) + std::fabs(shift) + 0.1;
            }
          }
          check_rows(name, kRows, width, dtype, run, [&](int64_t r, int64_t c) -> Near {
            const auto i = static_cast<size_t>(r * width + c);
            return {wanted[i], size[i] * (3 * rounding(dtype) + 1e-6)};
          });
        }
      }
    }
  }
}

void check_add_normed(Random& random) {
  for (DType dtype : kFloats) {
    for (int64_t width : {5, 64, 203}) {
      constexpr int64_t kRows = 5;
      const Array x(dtype, kRows * width, random, 4), before(dtype, kRows * width, random, 2);
      const Array weight(dtype, width, random);
      for (bool normed : {false, true}) {
        const float eps = 1e-5f, factor = 0.22f;
        auto run = [&](int64_t first, int64_t count, Array& out) {
          const int64_t bytes = width * size_of(dtype);
          std::memcpy(out.data(), before.data() + first * bytes, static_cast<size_t>(count * bytes));
          cpu::kernels().add_normed({{x.data() + first * bytes, width, dtype},
                                     {out.data(), width, dtype},
                                     normed ? weight.data() : nullptr,
                                     eps,
                                     factor,
                                     1.0f,
                                     count,
                                     width});
        };
        const std::string name = std::string(normed ? "add_normed " : "add scaled ") + name_of(dtype);
        check_rows(name + " " + std::to_string(width), kRows, width, dtype, run, [&](int64_t r, int64_t c) -> Near {
          double square = 0;
          for (int64_t i = 0; i < width; ++i)
            square += x[r * width + i] * x[r * width + i] / static_cast<double>(width);
          const double scale = normed ? weight[c] / std::sqrt(square + static_cast<double>(eps)) : 1;
          const double added = static_cast<double>(factor) * scale * x[r * width + c], was = before[r * width + c];
          return {was + added, (std::fabs(added) + std::fabs(was)) * (4 * rounding(dtype) + 1e-6)};
        });
      }
    }
  }
}

void check_activations(Random& random) {
  struct Plain {
    const char* name;
    void (*kernel)(const ActivationParams&);
    double (*wanted)(double);
  };
  const Plain plain[] = {
      {"gelu ", cpu::kernels().gelu, [](double x) { return x * std::erfc(-x / std::sqrt(2)) / 2; }},
      {"gelu_tanh ", cpu::kernels().gelu_tanh,
       [](double x) { return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }},
      {"relu2 ", cpu::kernels().relu2, [](double x) { return x > 0 ? x * x : 0; }}};
  for (DType dtype : kFloats) {
    for (int64_t width : {3, 80, 131}) {
      constexpr int64_t kRows = 6;
      const Array x(dtype, kRows * 2 * width, random, 6);
      for (const Plain& of : plain) {
        auto run = [&](int64_t first, int64_t count, Array& out) {
          of.kernel(
              {{x.data() + first * width * size_of(dtype), width, dtype}, {out.data(), width, dtype}, count, width});
        };
        check_rows(of.name + std::string(name_of(dtype)) + " " + std::to_string(width), kRows, width, dtype, run,
                   [&](int64_t r, int64_t c) -> Near {
                     const double wanted = of.wanted(x[r * width + c]);
                     return {wanted, std::fabs(wanted) * (2 * rounding(dtype) + 4e-6) + 1e-7};
                   });
      }
      for (bool silu : {true, false}) {
        auto run = [&](int64_t first, int64_t count, Array& out) {
          const GatedActivationParams p{{x.data() + first * 2 * width * size_of(dtype), 2 * width, dtype},
                                        {out.data(), width, dtype},
                                        count,
                                        width};
          (silu ? cpu::kernels().silu_mul : cpu::kernels().gelu_tanh_mul)(p);
        };
        check_rows(std::string(silu ? "silu_mul " : "gelu_tanh_mul ") + name_of(dtype) + " " + std::to_string(width),
                   kRows, width, dtype, run, [&](int64_t r, int64_t c) -> Near {
                     const double gate = x[r * 2 * width + c], up = x[(r * 2 + 1) * width + c];
                     const double z = silu ? gate : 2 * std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate);
                     const double wanted = gate / (1 + std::exp(-z)) * up;
                     return {wanted, std::fabs(wanted) * (2 * rounding(dtype) + 4e-6) + 1e-7};
                   });
      }
    }
  }
}

// Every 16-bit float to fp32 and back, and halves between them: an embedding only converts.
void check_conversions() {
  for (DType half : {DType::f16, DType::bf16}) {
    constexpr int64_t kAll = 1 << 16;
    Array narrow(half, kAll);
    for (int64_t i = 0; i < kAll; ++i) narrow.as<uint16_t>()[i] = static_cast<uint16_t>(i);
    const int64_t id = 0;
    auto convert = [&](const Array& from, Array& to) {
      cpu::kernels().embedding({&id,
                                from.data(),
                                nullptr,
                                TableLayout::rows,
                                from.dtype,
                                GgufType::q4_0,
                                {to.data(), to.size, to.dtype},
                                1,
                                1,
                                to.size});
    };
    Array wide(DType::f32, kAll), between(DType::f32, 3 * kAll), rounded(half, 3 * kAll);
    convert(narrow, wide);
    for (int64_t i = 0; i < kAll; ++i) {
      expect_near(std::string("widen ") + name_of(half), 0, i, wide[i], {narrow[i], 0});
      float next = (i & 0x7fff) == 0x7fff ? wide.as<float>()[i] : (wide.as<float>()[i] + wide.as<float>()[i + 1]) / 2;
      if (!std::isfinite(next)) next = 1.0f;
      between.as<float>()[3 * i] = next;
      between.as<float>()[3 * i + 1] = std::nextafterf(next, INFINITY);
      between.as<float>()[3 * i + 2] = std::nextafterf(next, -INFINITY);
    }
    convert(between, rounded);
    Array wanted(half, 3 * kAll);
    for (int64_t i = 0; i < 3 * kAll; ++i) wanted.set(i, between[i]);
    expect_same(std::string("round to ") + name_of(half), "a number", rounded, 0, wanted, 0, 3 * kAll);
    Digest(std::string("conversions ") + name_of(half)).add(rounded);
  }
}

}  // namespace

void check_rows_kernels() {
  Random random(1);
  check_norms(random);
  check_add_normed(random);
  check_activations(random);
  check_conversions();
  double done = 0;
  for (Ceiling ceiling : {Ceiling::fp32_flops, Ceiling::int8_ops}) {
    cpu::kernels().ceiling_loop({ceiling, 10, nullptr, nullptr, 0, &done});
    if (!(done > 0)) fail("ceiling_loop counts no operations");
  }
}

}  // namespace check
