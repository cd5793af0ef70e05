#include "simt/mma.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace simt {
namespace {

struct Ldmatrix {
  uint32_t* r;
  int count;
  bool transposed;
  uint16_t row[8];
};

struct Mma {
  void* d;
  const uint32_t *a, *b;
  Format format;
};

// In the fragment layouts lane = 4 * group + member.
int group(int lane) { return lane / 4; }
int member(int lane) { return lane % 4; }

// Matrix m leaves in each lane's register m the elements (group, 2 member) and (group, 2 member + 1); .trans: those of
// the transposed matrix.
void apply_ldmatrix(void* const operands[32], unsigned) {
  const auto& any = *static_cast<Ldmatrix*>(operands[0]);
  for (int lane = 0; lane < 32; ++lane) {
    for (int m = 0; m < any.count; ++m) {
      uint32_t packed = 0;
      for (int i = 0; i < 2; ++i) {
        int row = group(lane), column = 2 * member(lane) + i;
        if (any.transposed) std::swap(row, column);
        packed |= uint32_t{static_cast<Ldmatrix*>(operands[8 * m + row])->row[column]} << 16 * i;
      }
      static_cast<Ldmatrix*>(operands[lane])->r[m] = packed;
    }
  }
}

// A and B out of the registers of a warp. Each register holds kPack elements, neighbours along K. A (16 x K): register
// r has row group + 8 * (r % 2); B (K x 8): register r has column group. The elements of register r begin at K index
// kPack * member, plus half of K for A's upper two registers and B's second.
template <int kPack, class T, class Element>
void gather(void* const operands[32], T (&a)[16][8 * kPack], T (&b)[8 * kPack][8], Element element) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<Mma*>(operands[lane]);
    for (int i = 0; i < kPack; ++i) {
      int k = kPack * member(lane) + i;
      for (int r = 0; r < 4; ++r) a[group(lane) + 8 * (r % 2)][k + 4 * kPack * (r / 2)] = element(mine.a[r], i);
      for (int r = 0; r < 2; ++r) b[k + 4 * kPack * r][group(lane)] = element(mine.b[r], i);
    }
  }
}

// Calls f(register of D, row, column). D (16 x 8): registers 0 and 1 hold row group, columns 2 member and 2 member + 1;
// registers 2 and 3 row group + 8.
template <class D, class F>
void for_each_of_d(void* const operands[32], F f) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<D*>(static_cast<Mma*>(operands[lane])->d);
    for (int r = 0; r < 4; ++r) f(d[r], group(lane) + 8 * (r / 2), 2 * member(lane) + r % 2);
  }
}

template <Format kFormat>
void apply_float(void* const operands[32], unsigned) {
  uint32_t a[16][kSumDepth], b[kSumDepth][kSumColumns];
  gather<2>(operands, a, b, [](uint32_t packed, int i) { return packed >> 16 * i & 0xffff; });
  Columns columns;
  for (int k = 0; k < kSumDepth; ++k) {
    for (int column = 0; column < kSumColumns; ++column) {
      columns.value[k][column] = decode(kFormat, b[k][column]);
      columns.exponent[k][column] = exponent_of(kFormat, b[k][column]);
    }
  }
  float sums[16][kSumColumns];
  for_each_of_d<float>(operands, [&](float d, int row, int column) { sums[row][column] = d; });
  for (int row = 0; row < 16; ++row) {
    Row of_a;
    for (int k = 0; k < kSumDepth; ++k) {
      of_a.value[k] = decode(kFormat, a[row][k]), of_a.exponent[k] = exponent_of(kFormat, a[row][k]);
    }
    add_products(sums[row], of_a, columns);
  }
  for_each_of_d<float>(operands, [&](float& d, int row, int column) { d = sums[row][column]; });
}

}  // namespace

void add_products(float (&d)[kSumColumns], const Row& a, const Columns& b) {
  double product[kSumDepth][kSumColumns], plain[kSumColumns];
  int largest[kSumColumns];
  for (int column = 0; column < kSumColumns; ++column) {
    plain[column] = d[column];
    largest[column] = std::max(exponent_of(kFloat, std::bit_cast<uint32_t>(d[column])), -512);
  }
  for (int k = 0; k < kSumDepth; ++k) {
    for (int column = 0; column < kSumColumns; ++column) {
      plain[column] += product[k][column] = a.value[k] * b.value[k][column];
      largest[column] = std::max(largest[column], a.exponent[k] + b.exponent[k][column]);
    }
  }
  auto power_of_two = [](int exponent) { return std::bit_cast<double>(static_cast<uint64_t>(1023 + exponent) << 52); };
  for (int column = 0; column < kSumColumns; ++column) {
    if (!std::isfinite(plain[column])) {
      d[column] = static_cast<float>(plain[column]);
      continue;
    }
    double scale = power_of_two(kSumBits - largest[column]);
    auto units = static_cast<int64_t>(d[column] * scale);
    for (int k = 0; k < kSumDepth; ++k) units += static_cast<int64_t>(product[k][column] * scale);
    constexpr uint64_t kBelowFloat = (uint64_t{1} << 29) - 1;
    auto sum = std::bit_cast<uint64_t>(static_cast<double>(units) * power_of_two(largest[column] - kSumBits));
    d[column] = static_cast<float>(std::bit_cast<double>(sum & ~kBelowFloat));
  }
}

void ldmatrix(uint32_t* r, int count, bool transposed, const void* row, const char* name, Location at) {
  Ldmatrix operand{r, count, transposed, {}};
  if (lane() < 8u * static_cast<unsigned>(count)) {
    check_read(row, 16, name);
    std::memcpy(operand.row, row, 16);
  }
  aligned(name, &operand, apply_ldmatrix, at);
}

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Format format, const char* name,
                  Location at) {
  Mma operand{d, a, b, format};
  aligned(name, &operand, format.exponent_bits == kHalf.exponent_bits ? apply_float<kHalf> : apply_float<kBFloat16>, at);
}

void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Location at) {
  Mma operand{d, a, b, {}};
  Apply apply = [](void* const operands[32], unsigned) {
    int32_t left[16][32], right[32][8];
    gather<4>(operands, left, right, [](uint32_t packed, int i) { return static_cast<int8_t>(packed >> 8 * i); });
    int32_t sums[16][8] = {};
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 32; ++k) {
        for (int column = 0; column < 8; ++column) sums[row][column] += left[row][k] * right[k][column];
      }
    }
    for_each_of_d<int32_t>(operands, [&](int32_t& d, int row, int column) { d += sums[row][column]; });
  };
  aligned("mma.m16n8k32.s8", &operand, apply, at);
}

}  // namespace simt
