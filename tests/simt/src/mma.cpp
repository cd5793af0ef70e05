#include "simt/mma.h"

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

// D (16 x 8): registers 0 and 1 hold row group, columns 2 member and 2 member + 1; registers 2 and 3 row group + 8.
template <int kDepth, class T, class D>
void multiply(void* const operands[32], const T (&a)[16][kDepth], const T (&b)[kDepth][8], D) {
  T sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* d = static_cast<D*>(static_cast<Mma*>(operands[lane])->d);
    for (int r = 0; r < 4; ++r) {
      d[r] = static_cast<D>(static_cast<T>(d[r]) + sum[group(lane) + 8 * (r / 2)][2 * member(lane) + r % 2]);
    }
  }
}

template <class Decode>
void apply_float(void* const operands[32], Decode decode_bits) {
  double a[16][16], b[16][8];
  gather<2>(operands, a, b, [&](uint32_t packed, int i) { return double{decode_bits(packed >> 16 * i & 0xffff)}; });
  multiply(operands, a, b, 0.0f);
}

}  // namespace

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
    multiply(operands, left, right, int32_t{});
  };
  aligned("mma.m16n8k32.s8", &operand, apply, at);
}

}  // namespace simt
