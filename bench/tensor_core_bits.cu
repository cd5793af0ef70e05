// What the tensor cores of a Hopper chip add up, bit for bit: whether wgmma and mma.sync may stand in for each other,
// and whether a host model of their sums is exact. Prints a line of JSON a question: elements compared, and those that
// differ.
//
//   nvcc -std=c++20 -gencode=arch=compute_90a,code=sm_90a -o bits bench/tensor_core_bits.cu && ./bits
//
// The model is that of MMA-Sim (arXiv 2511.10909): the sixteen products and the accumulator are aligned to the largest
// exponent, cut off below so many fraction bits, and added exactly; the sum is cut off to fp32.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

namespace {

constexpr int kRows = 64, kColumns = 256, kDepth = 64, kStep = 16;  // of a product: A [rows][k], B [columns][k]
constexpr int kSharedPitch = 64;                                    // 128 bytes, the width of the swizzle

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
    std::exit(1);
  }
}

// ---- the instructions ----

template <class T>
__device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)
#define F32(i) F16(i), F16(i + 16)
#define P10(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define P30 P10() "," P10(1) "," P10(2)
#define P120 P30 "," P10(3) "," P10(4) "," P10(5) "," P10(6) "," P10(7) "," P10(8) "," P10(9) "," P10(10) "," P10(11)
#define OPEN(type, n, list)                                                                                        \
  "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" list \
  "}"                                                                                                              \
  ","                                                                                                              \
  " "
// r0 to r4: the numbers of the operands after those of D.
#define WGMMA(type, n, list, r0, r1, r2, r3, r4, ...)                                                       \
  if constexpr (kShared)                                                                                    \
    asm volatile(OPEN(type, n, list) r0 ", " r1 ", p, 1, 1, 0, 0;\n}" : __VA_ARGS__ : "l"(a_rows), "l"(b)); \
  else                                                                                                      \
    asm volatile(OPEN(type, n, list) "{" r0 "," r1 "," r2 "," r3 "}, " r4 ", p, 1, 1, 0;\n}"                \
                 : __VA_ARGS__                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#define BOTH_TYPES(...)                      \
  if constexpr (std::is_same_v<T, __half>) { \
    WGMMA("f16", __VA_ARGS__)                \
  } else {                                   \
    WGMMA("bf16", __VA_ARGS__)               \
  }

// d += a * b for 64 x kN x 16; a from registers or, where kShared, by its descriptor.
template <class T, int kN, bool kShared>
__device__ void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t a_rows, uint64_t b) {
  if constexpr (kN == 8) {
    BOTH_TYPES("8", "%0,%1,%2,%3", "%4", "%5", "%6", "%7", "%8", F4(0))
  } else if constexpr (kN == 64) {
    BOTH_TYPES("64", P30 ",%30,%31", "%32", "%33", "%34", "%35", "%36", F32(0))
  } else {
    static_assert(kN == 256);
    BOTH_TYPES("256", P120 ",%120,%121,%122,%123,%124,%125,%126,%127", "%128", "%129", "%130", "%131", "%132", F32(0),
               F32(32), F32(64), F32(96))
  }
}

// ---- the kernels: d [kRows][kColumns] += a [kRows][kDepth] * b [kColumns][kDepth], k in steps of sixteen ----

__device__ uint32_t pair(const void* matrix, int row, int k) {
  return reinterpret_cast<const uint32_t*>(matrix)[(row * kDepth + k) / 2];
}

// A warp an m16n8 tile.
template <class T>
__global__ void by_mma(const T* a, const T* b, float* d, int steps) {
  const int row = blockIdx.x * 16 + threadIdx.x / 4, t = threadIdx.x % 4, column = blockIdx.y * 8;
  float* at[4];
  for (int e = 0; e < 4; ++e) at[e] = d + (row + e / 2 * 8) * kColumns + column + 2 * t + e % 2;
  float sum[4] = {*at[0], *at[1], *at[2], *at[3]};
  for (int k = 0; k < steps * kStep; k += kStep) {
    const uint32_t left[4] = {pair(a, row, k + 2 * t), pair(a, row + 8, k + 2 * t), pair(a, row, k + 2 * t + 8),
                              pair(a, row + 8, k + 2 * t + 8)};
    const int mine = column + static_cast<int>(threadIdx.x) / 4;
    const uint32_t right[2] = {pair(b, mine, k + 2 * t), pair(b, mine, k + 2 * t + 8)};
    mma<T>(sum, left, right);
  }
  for (int e = 0; e < 4; ++e) *at[e] = sum[e];
}

// Rows of 128 bytes in eights, their sixteen bytes exchanged as the 128-byte swizzle has it.
template <class T>
__device__ void load_swizzled(T* to, const T* from, int rows) {
  for (int i = threadIdx.x; i < rows * kDepth; i += blockDim.x) {
    const int row = i / kDepth, k = i % kDepth;
    to[row * kSharedPitch + ((k / 8) ^ (row % 8)) * 8 + k % 8] = from[i];
  }
}

__device__ uint64_t descriptor(const void* rows) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return (static_cast<uint64_t>(__cvta_generic_to_shared(rows)) & 0x3ffff) >> 4 | kEightRows << 32 | kSwizzle128 << 62;
}

// A warpgroup for all rows and, block by block, kN columns.
template <class T, int kN, bool kShared>
__global__ void by_wgmma(const T* a, const T* b, float* d, int steps) {
  extern __shared__ __align__(1024) unsigned char shared[];
  T* shared_a = reinterpret_cast<T*>(shared);
  T* shared_b = shared_a + kRows * kSharedPitch;
  const int first_column = blockIdx.x * kN;
  load_swizzled(shared_a, a, kRows);
  load_swizzled(shared_b, b + first_column * kDepth, kN);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float sum[kN / 2];
  auto at = [&](int i) { return d + (row + i / 2 % 2 * 8) * kColumns + first_column + i / 4 * 8 + 2 * t + i % 2; };
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum[i] = *at(i);
  for (int k = 0; k < steps * kStep; k += kStep) {
    const uint32_t left[4] = {pair(a, row, k + 2 * t), pair(a, row + 8, k + 2 * t), pair(a, row, k + 2 * t + 8),
                              pair(a, row + 8, k + 2 * t + 8)};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    wgmma<T, kN, kShared>(sum, left, descriptor(shared_a + k), descriptor(shared_b + k));
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) *at(i) = sum[i];
}

// ---- the model ----

// Parts of a number whose value is mantissa * 2^(exponent - bits), 1 <= mantissa * 2^-bits < 2 unless subnormal.
struct Parts {
  int64_t mantissa;  // with its sign
  int exponent;
};

template <class T>
Parts parts_of(T x) {
  uint16_t bits;
  std::memcpy(&bits, &x, 2);
  constexpr int kMantissa = std::is_same_v<T, __half> ? 10 : 7;
  constexpr int kBias = std::is_same_v<T, __half> ? 15 : 127;
  const int stored = (bits & 0x7fff) >> kMantissa;
  int64_t mantissa = bits & ((1 << kMantissa) - 1);
  if (stored != 0) mantissa |= 1 << kMantissa;
  return {bits >> 15 ? -mantissa : mantissa, (stored != 0 ? stored : 1) - kBias};
}

Parts parts_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const int stored = bits >> 23 & 0xff;
  int64_t mantissa = bits & 0x7fffff;
  if (stored != 0) mantissa |= 1 << 23;
  return {bits >> 31 ? -mantissa : mantissa, (stored != 0 ? stored : 1) - 127};
}

template <class T>
float model_step(const T* a, const T* b, float sum, int fraction_bits) {
  constexpr int kMantissa = std::is_same_v<T, __half> ? 10 : 7;
  struct Term {
    int64_t mantissa;
    int exponent, bits;  // the value is mantissa * 2^(exponent - bits)
  } terms[kStep + 1];
  for (int i = 0; i < kStep; ++i) {
    const Parts x = parts_of(a[i]), y = parts_of(b[i]);
    terms[i] = {x.mantissa * y.mantissa, x.exponent + y.exponent, 2 * kMantissa};
  }
  const Parts x = parts_of(sum);
  terms[kStep] = {x.mantissa, x.exponent, 23};
  int largest = -1000;
  for (const Term& term : terms) {
    if (term.mantissa != 0) largest = std::max(largest, term.exponent);
  }
  int64_t total = 0;  // in units of 2^(largest - fraction_bits)
  for (const Term& term : terms) {
    const int shift = fraction_bits - term.bits - (largest - term.exponent);
    const int64_t size = std::llabs(term.mantissa);
    const int64_t cut = shift >= 0 ? size << shift : shift > -63 ? size >> -shift : 0;
    total += term.mantissa < 0 ? -cut : cut;
  }
  if (total == 0) return 0.0f;
  int64_t size = std::llabs(total);
  int length = 64 - __builtin_clzll(static_cast<unsigned long long>(size));
  int scale = largest - fraction_bits;
  if (length > 24) size >>= length - 24, scale += length - 24;
  const double value = std::ldexp(static_cast<double>(size), scale);
  return static_cast<float>(total < 0 ? -value : value);
}

// ---- the questions ----

template <class T>
struct Data {
  std::vector<T> a{std::vector<T>(kRows * kDepth)}, b{std::vector<T>(kColumns * kDepth)};
  std::vector<float> d{std::vector<float>(kRows * kColumns)};
};

// Numbers whose sums are not exact: of sizes 2^-spread to 2^spread.
template <class T>
Data<T> random_data(unsigned seed, int spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-spread, spread);
  auto number = [&] { return std::ldexp(normal(random), exponent(random)); };
  Data<T> data;
  for (auto& x : data.a) x = T(number());
  for (auto& x : data.b) x = T(number());
  for (auto& x : data.d) x = number() * 4;
  return data;
}

template <class T>
struct OnChip {
  T *a, *b;
  float* d;
  const Data<T>& data;
  explicit OnChip(const Data<T>& from) : data(from) {
    check(cudaMalloc(&a, data.a.size() * sizeof(T)));
    check(cudaMalloc(&b, data.b.size() * sizeof(T)));
    check(cudaMalloc(&d, data.d.size() * sizeof(float)));
    check(cudaMemcpy(a, data.a.data(), data.a.size() * sizeof(T), cudaMemcpyDefault));
    check(cudaMemcpy(b, data.b.data(), data.b.size() * sizeof(T), cudaMemcpyDefault));
  }
  ~OnChip() { cudaFree(a), cudaFree(b), cudaFree(d); }

  template <class Run>
  std::vector<float> sums(Run run) {
    check(cudaMemcpy(d, data.d.data(), data.d.size() * sizeof(float), cudaMemcpyDefault));
    run();
    check(cudaGetLastError());
    check(cudaDeviceSynchronize());
    std::vector<float> out(data.d.size());
    check(cudaMemcpy(out.data(), d, out.size() * sizeof(float), cudaMemcpyDefault));
    return out;
  }
  std::vector<float> mma(int steps) {
    return sums([&] { by_mma<T><<<dim3(kRows / 16, kColumns / 8), 32>>>(a, b, d, steps); });
  }
  template <int kN, bool kShared>
  std::vector<float> wgmma(int steps) {
    constexpr int kBytes = (kRows + kN) * kSharedPitch * 2;
    check(cudaFuncSetAttribute(by_wgmma<T, kN, kShared>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    return sums([&] { by_wgmma<T, kN, kShared><<<kColumns / kN, 128, kBytes>>>(a, b, d, steps); });
  }
};

long differing(const std::vector<float>& x, const std::vector<float>& y) {
  long count = 0;
  for (size_t i = 0; i < x.size(); ++i) count += std::memcmp(&x[i], &y[i], 4) != 0;
  return count;
}

template <class T>
void ask(const char* type, int spread) {
  long compared = 0, found[16] = {};
  constexpr int kRounds = 40;
  for (unsigned seed = 0; seed < kRounds; ++seed) {
    const Data<T> data = random_data<T>(seed, spread);
    OnChip<T> chip(data);
    const auto one = chip.mma(1), four = chip.mma(4);
    compared += static_cast<long>(one.size());
    found[0] += differing(one, chip.template wgmma<8, false>(1));
    found[1] += differing(four, chip.template wgmma<8, false>(4));
    found[2] += differing(four, chip.template wgmma<64, false>(4));
    found[3] += differing(four, chip.template wgmma<256, false>(4));
    found[4] += differing(four, chip.template wgmma<8, true>(4));
    found[5] += differing(four, chip.template wgmma<256, true>(4));
    // K permuted within sixteen, for both operands alike.
    Data<T> other = data;
    std::mt19937 random(seed);
    for (int k = 0; k < kDepth; k += kStep) {
      int order[kStep];
      for (int i = 0; i < kStep; ++i) order[i] = i;
      std::shuffle(order, order + kStep, random);
      for (int i = 0; i < kStep; ++i) {
        for (int row = 0; row < kRows; ++row) other.a[row * kDepth + k + i] = data.a[row * kDepth + k + order[i]];
        for (int row = 0; row < kColumns; ++row) other.b[row * kDepth + k + i] = data.b[row * kDepth + k + order[i]];
      }
    }
    OnChip<T> permuted(other);
    found[6] += differing(four, permuted.mma(4));
    found[7] += differing(four, permuted.template wgmma<64, false>(4));
    // Operands swapped: the first 64 columns are the rows of the product now.
    Data<T> swapped = data;
    for (int i = 0; i < kRows; ++i) {
      for (int k = 0; k < kDepth; ++k) {
        swapped.a[i * kDepth + k] = data.b[i * kDepth + k];
        swapped.b[i * kDepth + k] = data.a[i * kDepth + k];
      }
      for (int j = 0; j < kRows; ++j) swapped.d[j * kColumns + i] = data.d[i * kColumns + j];
    }
    OnChip<T> transposed(swapped);
    const auto mirror = transposed.mma(4), wide = transposed.template wgmma<8, true>(4);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kRows; ++j) {
        found[8] += std::memcmp(&mirror[j * kColumns + i], &four[i * kColumns + j], 4) != 0;
        found[9] += std::memcmp(&wide[j * kColumns + i], &four[i * kColumns + j], 4) != 0;
      }
    }
    for (int bits = 23; bits <= 27; ++bits) {
      for (int row = 0; row < kRows; ++row) {
        for (int column = 0; column < kColumns; ++column) {
          const float model =
              model_step(&data.a[row * kDepth], &data.b[column * kDepth], data.d[row * kColumns + column], bits);
          found[10 + bits - 23] += std::memcmp(&model, &one[row * kColumns + column], 4) != 0;
        }
      }
    }
  }
  const char* questions[] = {"wgmma n8, registers, 1 step",
                             "wgmma n8, registers, 4 steps",
                             "wgmma n64, registers, 4 steps",
                             "wgmma n256, registers, 4 steps",
                             "wgmma n8, shared, 4 steps",
                             "wgmma n256, shared, 4 steps",
                             "mma, k permuted",
                             "wgmma n64, k permuted",
                             "mma, operands swapped",
                             "wgmma n8, operands swapped",
                             "model of 23 bits",
                             "model of 24 bits",
                             "model of 25 bits",
                             "model of 26 bits",
                             "model of 27 bits"};
  for (int i = 0; i < 15; ++i) {
    const long all = i == 8 || i == 9 ? static_cast<long>(kRounds) * kRows * kRows : compared;
    std::printf(
        "{\"type\": \"%s\", \"spread\": %d, \"against mma.sync\": \"%s\", \"compared\": %ld, \"differ\": %ld}\n", type,
        spread, questions[i], all, found[i]);
  }
}

}  // namespace

int main() {
  for (const int spread : {0, 3, 8}) {
    ask<__nv_bfloat16>("bf16", spread);
    ask<__half>("f16", spread < 8 ? spread : 5);
  }
}
