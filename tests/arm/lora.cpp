// Low-rank adapters: rows of two of them by turns, and of none.
#include "check.h"

namespace check {

void check_low_rank() {
  Random random(11);
  constexpr int64_t kRows = 40, kAdapters = 2, kParts = 2, kRank = 32, kWidths[kParts] = {20, 9};
  constexpr int64_t kPanels = 3, kWidth = kWidths[0] + kWidths[1];
  constexpr LoraPanel panels[kPanels] = {{0, 16, 0}, {16, 4, 0}, {20, 9, 1}};
  const int32_t ranks[kAdapters * kParts] = {20, 20, 5, 0};
  std::vector<int32_t> slots;
  for (int64_t r = 0; r < kRows; ++r) slots.push_back(static_cast<int32_t>(r % 3) - 1);
  for (DType dtype : kFloats) {
    for (int64_t k : {37, 1100}) {
      const Array x(dtype, kRows * k, random), product(dtype, kRows * kWidth, random);
      Array a(dtype, kAdapters * kParts * kRank * k), b(dtype, kAdapters * kPanels * kRank * 16);
      auto a_at = [&](int64_t slot, int64_t part, int64_t j, int64_t i) {
        return (((slot * kParts + part) * (kRank / 16) + j / 16) * k + i) * 16 + j % 16;
      };
      auto b_at = [&](int64_t slot, int64_t panel, int64_t j, int64_t column) {
        return ((slot * kPanels + panel) * kRank + j) * 16 + column;
      };
      for (int64_t slot = 0; slot < kAdapters; ++slot) {
        for (int64_t part = 0; part < kParts; ++part) {
          for (int64_t j = 0; j < ranks[slot * kParts + part]; ++j) {
            for (int64_t i = 0; i < k; ++i) a.set(a_at(slot, part, j, i), random.number() / 8);
          }
        }
        for (int64_t panel = 0; panel < kPanels; ++panel) {
          for (int64_t j = 0; j < ranks[slot * kParts + panels[panel].part]; ++j) {
            for (int64_t c = 0; c < panels[panel].columns; ++c) b.set(b_at(slot, panel, j, c), random.number() / 8);
          }
        }
      }
      auto run = [&](int64_t first, int64_t count, Array& out) {
        std::memcpy(out.data(), product.data() + first * kWidth * size_of(dtype),
                    static_cast<size_t>(count * kWidth * size_of(dtype)));
        LoraParams p{};
        p.x = {x.data() + first * k * size_of(dtype), k, dtype};
        p.slots = slots.data() + first;
        p.a = a.data();
        p.b = b.data();
        p.dtype = dtype;
        p.ranks = ranks;
        p.panels = panels;
        p.product = {out.data(), kWidth, dtype};
        p.epilogue = Epilogue::store;
        p.m = count;
        p.k = k;
        p.adapters = kAdapters;
        p.parts = kParts;
        p.rank = kRank;
        p.num_panels = kPanels;
        cpu::kernels().add_lora(p);
      };
      auto wanted = [&](int64_t row, int64_t column) -> Near {
        const int64_t panel = column < 16 ? 0 : column < 20 ? 1 : 2, slot = slots[static_cast<size_t>(row)];
        const double before = product[row * kWidth + column];
        if (slot < 0) return {before, 0};
        double sum = 0;
        for (int64_t j = 0; j < ranks[slot * kParts + panels[panel].part]; ++j) {
          double of_rank = 0;
          for (int64_t i = 0; i < k; ++i) of_rank += x[row * k + i] * a[a_at(slot, panels[panel].part, j, i)];
          sum += of_rank * b[b_at(slot, panel, j, column - panels[panel].column)];
        }
        return {before + sum, rounding(dtype) * std::fabs(before + sum) + 1e-4};
      };
      check_rows(std::string("add_lora-") + name_of(dtype) + "-" + std::to_string(k), kRows, kWidth, dtype, run,
                 wanted);
    }
  }
}

}  // namespace check
