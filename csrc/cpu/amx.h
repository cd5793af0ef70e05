// AMX's tiles: eight registers of 16 rows of 64 bytes each (Intel SDM, volume 1, chapter 18). A product takes 16 cycles
// whatever the shapes; with 64-byte rows it is of 16 rows of A by 16 columns of B, over 64 k of bytes or 32 of bf16,
// and B's rows hold four or two k of each of the 16 columns, as weights are packed.
//
// In assembly, since a compiler's own forms want the numbers of tiles spelt out and not all tell it what memory they
// read and write.
#pragma once

#include "cpu/vec.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {

// The shapes of tiles 0 to 7, as `ldtilecfg` reads them.
struct alignas(64) TileShapes {
  static constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr TileShapes() {  // all as large as they can be
    for (int i = 0; i < kTiles; ++i) shape(i, kRows, kRowBytes);
  }
  constexpr void shape(int tile, int of_rows, int of_bytes) {
    rows[tile] = static_cast<uint8_t>(of_rows);
    row_bytes[tile] = static_cast<uint16_t>(of_bytes);
  }
};

// The calling thread has tiles of these shapes as long as this lives. Then they are released, or the system would save
// and restore 8 KiB whenever the thread is interrupted.
class TilesInUse {
 public:
  explicit TilesInUse(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
  ~TilesInUse() { asm volatile("tilerelease"); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

// Tiles are numbered in the instruction: calls f with Number<0>, Number<1>, ... kCount of them.
template <int kValue>
struct Number {
  constexpr operator int() const { return kValue; }
};
template <int kCount, int kFirst = 0, class F>
PYBATCH_INLINE void for_each_number(const F& f) {
  if constexpr (kFirst < kCount) {
    f(Number<kFirst>());
    for_each_number<kCount, kFirst + 1>(f);
  }
}

template <int kTile>
PYBATCH_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// stride: bytes from row to row. The compiler is told that all of p's array is read or written, and nothing else.
template <int kTile>
PYBATCH_INLINE void load_tile(const void* p, int64_t stride) {
  auto& all = *static_cast<const char (*)[]>(p);
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(kTile), "m"(all));
}
template <int kTile>
PYBATCH_INLINE void store_tile(void* p, int64_t stride) {
  auto& all = *static_cast<char (*)[]>(p);
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "+m"(all) : "r"(p), "r"(stride), "i"(kTile));
}

// Sum (int32) += A (unsigned bytes) times B (signed).
template <int kSum, int kA, int kB>
PYBATCH_INLINE void multiply_unsigned_signed() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}
// Both signed.
template <int kSum, int kA, int kB>
PYBATCH_INLINE void multiply_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// Sum (fp32) += A times B (bf16).
template <int kSum, int kA, int kB>
PYBATCH_INLINE void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
