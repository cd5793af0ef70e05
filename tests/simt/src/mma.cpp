#include "simt/mma.h"

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

template <class Decode>
void apply_float(void* const operands[32], Decode decode_bits) {
  double a[16][kSumDepth], b[kSumDepth][kSumColumns];
  gather<2>(operands, a, b, [&](uint32_t packed, int i) { return double{decode_bits(packed >> 16 * i & 0xffff)}; });
  float sums[16][kSumColumns];
  for_each_of_d<float>(operands, [&](float d, int row, int column) { sums[row][column] = d; });
  for (int row = 0; row < 16; ++row) add_products(sums[row], a[row], b);
  for_each_of_d<float>(operands, [&](float& d, int row, int column) { d = sums[row][column]; });
}

}  // namespace

void add_products(float (&d)[kSumColumns], const double (&a)[kSumDepth], const double (&b)[kSumDepth][kSumColumns]) {
  double product[kSumDepth][kSumColumns], largest[kSumColumns], plain[kSumColumns], sum[kSumColumns];
  for (int column = 0; column < kSumColumns; ++column) {
    plain[column] = d[column], largest[column] = std::fabs(plain[column]);
  }
  for (int k = 0; k < kSumDepth; ++k) {
    for (int column = 0; column < kSumColumns; ++column) {
      double x = product[k][column] = a[k] * b[k][column];
      plain[column] += x;
      largest[column] = std::fabs(x) > largest[column] ? std::fabs(x) : largest[column];
    }
  }
  // Each term is rounded to one grid by a number so large that the grid is all that its fraction has room for: of the
  // terms on it every sum is exact.
  double large[kSumColumns];
  for (int column = 0; column < kSumColumns; ++column) {
    constexpr uint64_t kExponent = 0x7ffull << 52;
    large[column] = std::bit_cast<double>(std::bit_cast<uint64_t>(largest[column]) & kExponent) * 96;  // 1.5 * 2^6
    sum[column] = (d[column] + large[column]) - large[column];
  }
  for (int k = 0; k < kSumDepth; ++k) {
    for (int column = 0; column < kSumColumns; ++column) {
      sum[column] += (product[k][column] + large[column]) - large[column];
    }
  }
  for (int column = 0; column < kSumColumns; ++column) {
    d[column] = static_cast<float>(std::isfinite(plain[column]) ? sum[column] : plain[column]);
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
  Apply half = [](void* const operands[32], unsigned) {
    apply_float(operands, [](uint32_t bits) { return decode(kHalf, bits); });
  };
  Apply bfloat16 = [](void* const operands[32], unsigned) {
    apply_float(operands, [](uint32_t bits) { return decode(kBFloat16, bits); });
  };
  aligned(name, &operand, format.exponent_bits == kHalf.exponent_bits ? half : bfloat16, at);
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
