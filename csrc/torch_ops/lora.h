// The op of low-rank adapters.
#pragma once

#include <algorithm>

#include "pybatch/lora.h"
#include "torch_ops/checks.h"
#include "torch_ops/values.h"

namespace pybatch {

struct AdapterSlots {
  const int32_t* slots;
  int64_t count, limit;

  bool operator==(const AdapterSlots&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(slots[i] < limit, "slots: expected below ", limit, " (the adapters), got ", slots[i], " at ", i);
    }
  }
};

struct AdapterRanks {
  const int32_t* ranks;
  int64_t count, limit;

  bool operator==(const AdapterRanks&) const = default;
  void operator()() const {
    for (int64_t i = 0; i < count; ++i) {
      EXPECT(ranks[i] >= 0 && ranks[i] <= limit, "ranks: expected 0 to ", limit, ", got ", ranks[i], " at ", i);
    }
  }
};

struct LoraPanels {
  const LoraPanel* panels;
  int64_t count, parts, n, width;  // width: of out where gate and up are multiplied, else 0

  bool operator==(const LoraPanels&) const = default;
  void operator()() const {
    int64_t end = 0;
    for (int64_t i = 0; i < count; ++i) {
      const LoraPanel& p = panels[i];
      EXPECT(p.part >= 0 && p.part < parts, "panels: expected parts in [0, ", parts, "), got ", p.part, " at ", i);
      const int64_t begin = p.column, stop = begin + p.columns;
      EXPECT(p.columns > 0 && p.columns <= kPanel && begin >= end && stop <= n,
             "panels: expected ascending runs of 1 to ", kPanel, " of ", n, " columns, got ", p.columns, " from ",
             p.column, " on at ", i);
      const int64_t left = width - i / 2 * kPanel;
      EXPECT(width == 0 || (p.column == i * kPanel && p.columns == std::min(left, kPanel)),
             "panels: expected one every ", kPanel, " columns, of those that out has, got ", p.columns, " from ",
             p.column, " on at ", i);
      end = stop;
    }
  }
};

template <class Backend>
struct LoraOps : Checks<Backend> {
  using Base = Checks<Backend>;
  using Base::check, Base::input, Base::output;

  static void add_lora(const Tensor& x, const Tensor& slots, const Tensor& a, const Tensor& b, const Tensor& ranks,
                       const Tensor& panels, int64_t epilogue, Tensor product, const OptionalTensor& out) {
    typename Backend::Scope scope(x);
    LoraParams p{};
    p.x = input(x, "x", kAny, kAny);
    p.m = x.size(0);
    p.k = x.size(1);
    EXPECT(p.k > 0, "x: expected at least one column");
    EXPECT(epilogue == 0 || epilogue == 2 || epilogue == 3,
           "epilogue: expected 0 (store), 2 (silu_mul) or 3 (gelu_tanh_mul), got ", epilogue);
    p.epilogue = static_cast<Epilogue>(epilogue);
    expect_given(a, "a");
    p.dtype = float_type(a, "a");
    check(a, "a", a.scalar_type(), {kAny, kAny, kAny, p.k, kPanel});
    expect_aligned(a, "a");
    p.adapters = a.size(0);
    p.parts = a.size(1);
    p.rank = a.size(2) * kPanel;
    EXPECT(p.adapters > 0, "a: expected at least one adapter");
    EXPECT(p.rank > 0 && p.rank <= kMostRank, "a: expected ranks of ", kPanel, " to ", kMostRank, ", got ", p.rank);
    check(b, "b", a.scalar_type(), {p.adapters, kAny, p.rank, kPanel});
    expect_aligned(b, "b");
    p.num_panels = b.size(1);
    p.a = a.data_ptr();
    p.b = b.data_ptr();
    check(slots, "slots", ScalarType::Int, {p.m});
    p.slots = pointer<int32_t>(slots);
    check(ranks, "ranks", ScalarType::Int, {p.adapters, p.parts});
    p.ranks = pointer<int32_t>(ranks);
    check(panels, "panels", ScalarType::Int, {p.num_panels, 3});
    p.panels = pointer<LoraPanel>(panels);
    p.product = output(product, "product", p.m, kAny);
    const bool gated = is_gated(p.epilogue);
    EXPECT(gated == out.has_value(), "out: expected one where the epilogue is gated, and else None");
    if (gated) {
      p.out = output(*out, "out", p.m, kAny);
      expect_same_type(p.out.dtype, "out", p.product.dtype, "product");
      p.width = out->size(1);
      const int64_t each = (p.width + kPanel - 1) / kPanel;
      EXPECT(product.size(1) == 2 * each * kPanel && p.num_panels == 2 * each, "product: expected ", 2 * each * kPanel,
             " columns and ", 2 * each, " panels for ", p.width, " columns of out, got ", product.size(1), " and ",
             p.num_panels);
    }
    Backend::verify(AdapterSlots{p.slots, p.m, p.adapters}, {p.slots});
    Backend::verify(AdapterRanks{p.ranks, p.adapters * p.parts, p.rank}, {p.ranks});
    Backend::verify(LoraPanels{p.panels, p.num_panels, p.parts, product.size(1), p.width}, {p.panels});
    if (p.m > 0 && p.num_panels > 0) Backend::add_lora(p);
  }
};

}  // namespace pybatch
