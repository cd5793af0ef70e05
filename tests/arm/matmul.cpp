// The matmuls, with weights packed as pybatch/matmul.h says, their epilogues, and embeddings of packed weights.
#include "check.h"

namespace check {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Weights {
  Array packed, scale;         // scale: of int8
  std::vector<double> values;  // [n][k], unscaled where int8
};

Weights pack_dense(DType dtype, int64_t n, int64_t k, Random& random) {
  const int64_t group = 4 / size_of(dtype), groups = ceil_div(k, group);
  Weights w{Array(dtype, ceil_div(n, kPanel) * groups * kPanel * group), Array(DType::f32, 1), {}};
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t at = ((i / kPanel * groups + j / group) * kPanel + i % kPanel) * group + j % group;
      w.packed.set(at, random.number());
      w.values.push_back(w.packed[at]);
    }
  }
  return w;
}

Weights pack_int8(int64_t n, int64_t k, Random& random, bool extreme) {
  const int64_t groups = ceil_div(k, 4), panel = (groups + 1) * kPanel * 4;
  Weights w{Array(DType::i8, ceil_div(n, kPanel) * panel), Array(DType::f32, n), {}};
  for (int64_t i = 0; i < n; ++i) {
    w.scale.set(i, 0.01 + std::fabs(random.number()));
    char* of_panel = w.packed.data() + i / kPanel * panel;
    int32_t sum = 0;
    for (int64_t j = 0; j < k; ++j) {
      const auto q = static_cast<int8_t>(extreme ? -128 : random.below(256) - 128);
      of_panel[j / 4 * kPanel * 4 + i % kPanel * 4 + j % 4] = q;
      w.values.push_back(q);
      sum += q;
    }
    std::memcpy(of_panel + groups * kPanel * 4 + i % kPanel * 4, &sum, 4);
  }
  return w;
}

// float8_e4m3fn, each but NaN.
Weights pack_float8(int64_t n, int64_t k, Random& random) {
  Weights w = pack_int8(n, k, random, false);
  const int64_t panel = (ceil_div(k, 4) + 1) * kPanel * 4;
  for (int64_t i = 0; i < n * k; ++i) {
    const int64_t row = i / k, j = i % k;
    const auto bits = static_cast<uint32_t>(random.below(2) * 128 + random.below(127));
    w.packed.data()[row / kPanel * panel + j / 4 * kPanel * 4 + row % kPanel * 4 + j % 4] = static_cast<char>(bits);
    const int exponent = static_cast<int>(bits >> 3 & 15);
    const double value = std::ldexp((exponent != 0 ? 8 : 0) + (bits & 7), (exponent != 0 ? exponent : 1) - 10);
    w.values[static_cast<size_t>(i)] = bits >> 7 != 0 ? -value : value;
  }
  return w;
}

double half_at(const uint8_t* p) {
  Array one(DType::f16, 1);
  std::memcpy(one.data(), p, 2);
  return one[0];
}

// A block of a GGUF file as its format's description has it.
void decode_block(GgufType type, const uint8_t* b, double* out) {
  switch (type) {
    case GgufType::q4_0:
    case GgufType::q4_1: {
      const bool has_min = type == GgufType::q4_1;
      const double d = half_at(b), m = has_min ? half_at(b + 2) : -8 * d;
      const uint8_t* q = b + (has_min ? 4 : 2);
      for (int i = 0; i < 16; ++i) {
        out[i] = (q[i] & 15) * d + m;
        out[i + 16] = (q[i] >> 4) * d + m;
      }
      break;
    }
    case GgufType::q5_0:
    case GgufType::q5_1: {
      const bool has_min = type == GgufType::q5_1;
      const double d = half_at(b), m = has_min ? half_at(b + 2) : -16 * d;
      const uint8_t *fifth = b + (has_min ? 4 : 2), *q = fifth + 4;
      for (int i = 0; i < 32; ++i) {
        const int nibble = i < 16 ? q[i] & 15 : q[i - 16] >> 4;
        out[i] = (nibble | (fifth[i / 8] >> i % 8 & 1) << 4) * d + m;
      }
      break;
    }
    case GgufType::q8_0:
      for (int i = 0; i < 32; ++i) out[i] = static_cast<int8_t>(b[2 + i]) * half_at(b);
      break;
    case GgufType::q2_k:
      for (int i = 0; i < 256; ++i) {
        const int code = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        out[i] = half_at(b + 80) * (b[i / 16] & 15) * code - half_at(b + 82) * (b[i / 16] >> 4);
      }
      break;
    case GgufType::q3_k:
      for (int i = 0; i < 256; ++i) {
        const int low = b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3, high = b[i % 32] >> (i / 32) & 1;
        const uint8_t* s = b + 96;
        const int g = i / 16, scale = (s[g % 8] >> (g / 8 * 4) & 15) | (s[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
        out[i] = half_at(b + 108) * (scale - 32) * ((low | high << 2) - 4);
      }
      break;
    case GgufType::q4_k:
    case GgufType::q5_k: {
      const bool five = type == GgufType::q5_k;
      const uint8_t *s = b + 4, *fifth = b + 16, *q = b + (five ? 48 : 16);
      for (int i = 0; i < 8; ++i) {
        const int scale = i < 4 ? s[i] & 63 : (s[i + 4] & 15) | (s[i - 4] >> 6) << 4;
        const int min = i < 4 ? s[i + 4] & 63 : s[i + 4] >> 4 | (s[i] >> 6) << 4;
        for (int j = 0; j < 32; ++j) {
          int code = i % 2 == 0 ? q[i / 2 * 32 + j] & 15 : q[i / 2 * 32 + j] >> 4;
          if (five) code |= (fifth[j] >> i & 1) << 4;
          out[i * 32 + j] = half_at(b) * scale * code - half_at(b + 2) * min;
        }
      }
      break;
    }
    case GgufType::iq4_nl:
      for (int i = 0; i < 32; ++i) out[i] = half_at(b) * kIq4Values[i < 16 ? b[2 + i] & 15 : b[2 + i - 16] >> 4];
      break;
    case GgufType::iq4_xs:
      for (int i = 0; i < 256; ++i) {
        const int g = i / 32, low = b[4 + g / 2] >> (g % 2 * 4) & 15, high = (b[2] | b[3] << 8) >> (2 * g) & 3;
        const uint8_t q = b[8 + 16 * g + i % 16];
        out[i] = half_at(b) * ((low | high << 4) - 32) * kIq4Values[i % 32 < 16 ? q & 15 : q >> 4];
      }
      break;
    case GgufType::mxfp4:
      for (int i = 0; i < 32; ++i) {
        out[i] = std::ldexp(kFp4Values[i < 16 ? b[1 + i] & 15 : b[1 + i - 16] >> 4], b[0] - 128);
      }
      break;
    case GgufType::q6_k: {
      const double d = half_at(b + 208);
      for (int i = 0; i < 256; ++i) {
        const int half = i / 128, quarter = i % 128 / 32, j = i % 32;
        const int low = b[half * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4) & 15;
        const int high = b[128 + half * 32 + j] >> (quarter * 2) & 3;
        out[i] = d * static_cast<int8_t>(b[192 + i / 16]) * ((low | high << 4) - 32);
      }
    }
  }
}

Weights pack_gguf(GgufType type, int64_t n, int64_t k, Random& random) {
  const GgufBlock format = kGgufBlocks[static_cast<int>(type)];
  // What is no word: its 16-bit floats, and behind that of IQ4_XS 16 bits more, or MXFP4's one byte.
  const bool byte = type == GgufType::mxfp4,
             last = type == GgufType::q2_k || type == GgufType::q3_k || type == GgufType::q6_k;
  const int64_t floats = byte ? 0 : format.mins > 0 ? 2 : 1, others = byte ? 1 : type == GgufType::iq4_xs ? 2 : floats;
  const int64_t other_bytes = byte ? 1 : 2 * others, words = (format.bytes - other_bytes) / 4;
  const int64_t blocks = k / format.weights, other_at = last ? format.bytes - other_bytes : 0;
  Weights w{Array(DType::i8, ceil_div(n, kPanel) * blocks * kPanel * format.bytes), Array(DType::f32, 1), {}};
  w.values.resize(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t b[256];
      for (uint8_t& byte : b) byte = static_cast<uint8_t>(random.bits());
      Array scales(DType::f16, 2, random, 0.02);
      std::memcpy(b + other_at, scales.data(), static_cast<size_t>(2 * floats));
      if (byte) b[0] = static_cast<uint8_t>(116 + random.below(6));
      decode_block(type, b, w.values.data() + i * k + block * format.weights);
      char* to = w.packed.data() + (i / kPanel * blocks + block) * kPanel * format.bytes;
      const uint8_t* first = b + (last ? 0 : other_bytes);
      for (int64_t j = 0; j < words; ++j) std::memcpy(to + (j * kPanel + i % kPanel) * 4, first + 4 * j, 4);
      const int64_t size = other_bytes / others;
      for (int64_t j = 0; j < others; ++j) {
        std::memcpy(to + words * kPanel * 4 + (j * kPanel + i % kPanel) * size, b + other_at + size * j,
                    static_cast<size_t>(size));
      }
    }
  }
  return w;
}

// `of` activations share a scale: codes to the nearest integer of what float arithmetic makes of them.
std::vector<double> quantised(const Array& x, int64_t rows, int64_t k, int64_t of, bool only_codes,
                              std::vector<float>* scales) {
  std::vector<double> out;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t begin = 0; begin < k; begin += of) {
      float most = 0;
      for (int64_t i = begin; i < begin + of; ++i) {
        most = std::max(most, std::fabs(static_cast<float>(x[r * k + i])));
      }
      const float scale = most / 127.0f, inverse = 127.0f / most;
      for (int64_t i = begin; i < begin + of; ++i) {
        const double q = std::nearbyint(static_cast<float>(x[r * k + i]) * inverse);
        out.push_back(only_codes ? q : q * static_cast<double>(scale));
      }
      scales->push_back(scale);
    }
  }
  return out;
}

struct Shape {
  int64_t m, n, k;
};

enum class Kind { dense, w8a16, w8a8, gguf };

auto kernel_of(Kind kind) {
  const auto& kernels = cpu::kernels();
  return kind == Kind::dense   ? kernels.matmul_dense
         : kind == Kind::w8a16 ? kernels.matmul_w8a16
         : kind == Kind::w8a8  ? kernels.matmul_w8a8
                               : kernels.matmul_gguf;
}

void check_matmul(Kind kind, const std::string& name, const Weights& w, DType weight_dtype, GgufType gguf_type, Shape s,
                  DType dtype, Epilogue epilogue, Random& random) {
  const Array x(dtype, s.m * s.k, random, 2), bias(DType::f32, s.n, random);
  const int64_t width = is_gated(epilogue) ? s.n / 2 : s.n;
  const Array before(dtype, s.m * width, random);
  auto run = [&](int64_t first, int64_t count, Array& out) {
    std::memcpy(out.data(), before.data() + first * width * size_of(dtype),
                static_cast<size_t>(count * width * size_of(dtype)));
    MatmulParams p{};
    p.x = {x.data() + first * s.k * size_of(dtype), s.k, dtype};
    p.weight = w.packed.data();
    p.weight_dtype = weight_dtype;
    p.gguf_type = gguf_type;
    p.scale = reinterpret_cast<const float*>(w.scale.data());
    p.bias = bias.data();
    p.bias_dtype = DType::f32;
    p.epilogue = epilogue;
    p.out = {out.data(), width, dtype};
    p.m = count;
    p.n = s.n;
    p.k = s.k;
    p.width = width;
    kernel_of(kind)(p);
  };
  std::vector<float> row_scales;
  std::vector<double> in(static_cast<size_t>(s.m * s.k));
  for (int64_t i = 0; i < s.m * s.k; ++i) in[static_cast<size_t>(i)] = x[i];
  if (kind == Kind::w8a8) in = quantised(x, s.m, s.k, s.k, true, &row_scales);
  if (kind == Kind::gguf) in = quantised(x, s.m, s.k, 32, false, &row_scales);
  auto product = [&](int64_t r, int64_t c) -> Near {
    double sum = 0, size = 0;
    for (int64_t i = 0; i < s.k; ++i) {
      const double term = in[static_cast<size_t>(r * s.k + i)] * w.values[static_cast<size_t>(c * s.k + i)];
      sum += term;
      size += std::fabs(term);
    }
    if (kind == Kind::w8a8) {  // to the bit
      const auto scale = row_scales[static_cast<size_t>(r)] * static_cast<float>(w.scale[c]);
      const float scaled = static_cast<float>(sum) * scale;
      const double value = static_cast<double>(scaled + static_cast<float>(bias[c]));
      return {value, std::fabs(value) * (dtype == DType::f32 ? 0 : rounding(dtype))};
    }
    if (kind == Kind::w8a16) {
      sum *= w.scale[c];
      size *= w.scale[c];
    }
    sum += bias[c];
    return {sum, (size + std::fabs(bias[c])) * 0x1p-24 * std::sqrt(static_cast<double>(s.k)) * 4 +
                     std::fabs(sum) * rounding(dtype)};
  };
  check_rows(
      name + " " + name_of(dtype) + " " + std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k),
      s.m, width, dtype, run, [&](int64_t r, int64_t c) -> Near {
        if (epilogue == Epilogue::store) return product(r, c);
        if (epilogue == Epilogue::add) {
          const Near sum = product(r, c);
          const double value = sum.value + before[r * width + c];
          return {value, sum.tolerance + std::fabs(value) * rounding(dtype)};
        }
        const int64_t column = c / kPanel * 2 * kPanel + c % kPanel;
        const Near gate = product(r, column), up = product(r, column + kPanel);
        const double g = gate.value,
                     z = epilogue == Epilogue::silu_mul ? g : 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
        const double act = g / (1 + std::exp(-z)), value = act * up.value;
        return {value, 1.2 * gate.tolerance * std::fabs(up.value) + up.tolerance * std::fabs(act) +
                           std::fabs(value) * (rounding(dtype) + 4e-6) + 1e-6};
      });
}

// Rows of several weights against the plain matmul of each, and the sums over a token's experts against theirs.
void check_experts(Kind kind, const std::string& name, const std::vector<Weights>& experts, DType dtype, GgufType type,
                   int64_t n, int64_t k, Random& random) {
  const auto count = static_cast<int64_t>(experts.size());
  const int64_t packed = experts[0].packed.bytes();
  Array stack(DType::i8, count * packed), scales(DType::f32, count * n);
  for (int64_t e = 0; e < count; ++e) {
    const Weights& w = experts[static_cast<size_t>(e)];
    std::memcpy(stack.data() + e * packed, w.packed.data(), static_cast<size_t>(packed));
    for (int64_t i = 0; i < n && kind != Kind::dense && kind != Kind::gguf; ++i) scales.set(e * n + i, w.scale[i]);
  }
  for (int64_t tokens : {1, 9, 70}) {
    const std::string of = "experts " + name + " " + std::to_string(tokens);
    constexpr int64_t kTop = 2;
    const int64_t rows = tokens * kTop;
    Array logits(DType::f32, tokens * count, random), x(DType::f32, tokens * k, random);
    for (int64_t t = 0; t < tokens; ++t) logits.set(t * count, 9);  // most rows are of expert 0
    std::vector<int32_t> ids(static_cast<size_t>(rows)), order(ids), places(ids);
    std::vector<int32_t> starts(static_cast<size_t>(count + 1));
    Array weights(DType::f32, rows);
    cpu::kernels().route_experts({logits.as<float>(), count, nullptr, nullptr, ids.data(), weights.as<float>(),
                                  starts.data(), order.data(), places.data(), tokens, count, kTop, 1, 1, 1,
                                  Scoring::sigmoid, false, 1.0f});
    MatmulParams p{};
    p.weight_dtype = dtype;
    p.gguf_type = type;
    p.n = p.width = n;
    p.k = k;
    Array wanted(DType::f32, rows * n), made(wanted), gathered(DType::f32, rows * k), sums(DType::f32, tokens * n);
    for (int64_t e = 0; e < count; ++e) {
      for (int64_t row = starts[static_cast<size_t>(e)]; row < starts[static_cast<size_t>(e + 1)]; ++row) {
        const float* token = x.as<float>() + order[static_cast<size_t>(row)] * k;
        std::memcpy(gathered.as<float>() + row * k, token, static_cast<size_t>(k) * sizeof(float));
        p.x = {token, k, DType::f32};
        p.out = {wanted.as<float>() + row * n, n, DType::f32};
        p.weight = stack.data() + e * packed;
        p.scale = scales.as<float>() + e * n;
        p.m = 1;
        kernel_of(kind)(p);
      }
    }
    p.weight = stack.data();
    p.scale = scales.as<float>();
    p.m = rows;
    for (int count_of_threads : {1, 3}) {
      threads = count_of_threads;
      p.experts = {count, starts.data(), order.data(), nullptr, nullptr, 0, packed, tokens};
      p.x = {x.data(), k, DType::f32};
      p.out = {made.data(), n, DType::f32};
      kernel_of(kind)(p);
      p.experts = {count, starts.data(), nullptr, places.data(), weights.as<float>(), kTop, packed, rows};
      p.x = {gathered.data(), k, DType::f32};
      p.out = {sums.data(), n, DType::f32};
      kernel_of(kind)(p);
      for (int64_t i = 0; i < rows * n; ++i) {
        if (made.word(i) == wanted.word(i)) continue;
        fail("%s: row %d is not that of its expert alone", of.c_str(), static_cast<int>(i / n));
        break;
      }
      for (int64_t i = 0; i < tokens * n; ++i) {
        double sum = 0, size = 0;
        for (int64_t j = 0; j < kTop; ++j) {
          const int64_t at = i / n * kTop + j;
          const double term = weights[at] * wanted[places[static_cast<size_t>(at)] * n + i % n];
          sum += term;
          size += std::fabs(term);
        }
        if (std::fabs(sums[i] - sum) <= size * 0x1p-22) continue;
        fail("%s: a sum of token %d is %g, not %g", of.c_str(), static_cast<int>(i / n), sums[i], sum);
        break;
      }
    }
    threads = 1;
    Digest digest(of);
    digest.add(made);
    digest.add(sums);
  }
}

// Embeddings of the same weights: each id's row.
void check_embedding(const std::string& name, const Weights& w, TableLayout layout, DType dtype, GgufType type,
                     int64_t n, int64_t k) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < 9; ++i) ids.push_back(i * 7 % n);
  auto run = [&](int64_t first, int64_t count, Array& out) {
    cpu::kernels().embedding({ids.data() + first,
                              w.packed.data(),
                              reinterpret_cast<const float*>(w.scale.data()),
                              layout,
                              dtype,
                              type,
                              {out.data(), k, DType::f32},
                              count,
                              n,
                              k});
  };
  check_rows("embedding " + name, static_cast<int64_t>(ids.size()), k, DType::f32, run,
             [&](int64_t r, int64_t c) -> Near {
               const int64_t id = ids[static_cast<size_t>(r)];
               const double value = w.values[static_cast<size_t>(id * k + c)];
               const double scaled = layout == TableLayout::packed_scaled ? value * w.scale[id] : value;
               return {scaled, layout == TableLayout::packed_dense ? 0 : std::fabs(scaled) * 1e-6 + 1e-5};
             });
}

}  // namespace

void check_matmuls() {
  Random random(2);
  constexpr Shape kShapes[] = {{1, 64, 96}, {2, 40, 37}, {7, 130, 52}, {19, 33, 620}, {70, 96, 64}};
  for (const Shape& s : kShapes) {
    for (DType dtype : kFloats) {
      const Weights dense = pack_dense(dtype, s.n, s.k, random);
      check_matmul(Kind::dense, "dense", dense, dtype, GgufType::q4_0, s, dtype, Epilogue::store, random);
      if (s.m == 2)
        check_embedding(std::string("dense ") + name_of(dtype), dense, TableLayout::packed_dense, dtype, GgufType::q4_0,
                        s.n, s.k);
      const Weights int8 = pack_int8(s.n, s.k, random, false);
      check_matmul(Kind::w8a16, "w8a16", int8, DType::i8, GgufType::q4_0, s, dtype, Epilogue::add, random);
      const Weights float8 = pack_float8(s.n, s.k, random);
      check_matmul(Kind::w8a16, "float8", float8, DType::e4m3, GgufType::q4_0, s, dtype, Epilogue::store, random);
      if (s.m == 2)
        check_embedding("float8", float8, TableLayout::packed_scaled, DType::e4m3, GgufType::q4_0, s.n, s.k);
      check_matmul(Kind::w8a8, "w8a8", int8, DType::i8, GgufType::q4_0, s, dtype, Epilogue::store, random);
      if (s.m == 2) check_embedding("int8", int8, TableLayout::packed_scaled, DType::i8, GgufType::q4_0, s.n, s.k);
    }
    const Weights extreme = pack_int8(s.n, s.k, random, true);
    check_matmul(Kind::w8a8, "w8a8 extreme", extreme, DType::i8, GgufType::q4_0, s, DType::f32, Epilogue::store,
                 random);
    if (s.n % 32 != 0) continue;
    const Weights gated = pack_dense(DType::f32, s.n, s.k, random);
    const Weights gated_int8 = pack_int8(s.n, s.k, random, false);
    for (Epilogue epilogue : {Epilogue::silu_mul, Epilogue::gelu_tanh_mul}) {
      const std::string name = epilogue == Epilogue::silu_mul ? "silu" : "gelu";
      check_matmul(Kind::dense, "dense " + name, gated, DType::f32, GgufType::q4_0, s, DType::f32, epilogue, random);
      check_matmul(Kind::w8a16, "w8a16 " + name, gated_int8, DType::i8, GgufType::q4_0, s, DType::f32, epilogue,
                   random);
    }
  }
  for (const GgufBlock& block : kGgufBlocks) {
    const auto type = static_cast<GgufType>(&block - kGgufBlocks);
    const std::string name = block.name;
    for (const Shape& s : {Shape{1, 48, 512}, Shape{5, 40, 256}, Shape{21, 33, 512}}) {
      const Weights w = pack_gguf(type, s.n, s.k, random);
      check_matmul(Kind::gguf, name, w, DType::i8, type, s, DType::f32, Epilogue::store, random);
      if (s.m == 5) check_embedding(name, w, TableLayout::packed_gguf, DType::i8, type, s.n, s.k);
    }
  }
  auto five = [](const auto& pack) {
    std::vector<Weights> experts;
    for (int i = 0; i < 5; ++i) experts.push_back(pack());
    return experts;
  };
  constexpr int64_t kColumns = 40, kK = 96;
  const auto dense = five([&] { return pack_dense(DType::bf16, kColumns, kK, random); });
  check_experts(Kind::dense, "bf16", dense, DType::bf16, GgufType::q4_0, kColumns, kK, random);
  const auto int8 = five([&] { return pack_int8(kColumns, kK, random, false); });
  check_experts(Kind::w8a16, "w8a16", int8, DType::i8, GgufType::q4_0, kColumns, kK, random);
  check_experts(Kind::w8a8, "w8a8", int8, DType::i8, GgufType::q4_0, kColumns, kK, random);
  const auto blocks = five([&] { return pack_gguf(GgufType::q4_1, kColumns, kK, random); });
  check_experts(Kind::gguf, "Q4_1", blocks, DType::i8, GgufType::q4_1, kColumns, kK, random);
}

}  // namespace check
