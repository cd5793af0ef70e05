#include "pybatch/lora.h"

#include "cpu/activation_lanes.h"
#include "cpu/vec.h"
#include "pybatch/parallel.h"

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileRows = 32;           // of one adapter, that are worked on together
constexpr int64_t kChunk = 1024;            // of k, whose sums are added up apart
constexpr int64_t kTilePanels = 32;         // even, so that a gate and its up are in one
constexpr int64_t kWorkPerThread = 32'768;  // vectors of products that are worth waking a thread for
#ifdef PYBATCH_ANY_AVX512
constexpr int kMostRows = 8, kMostSums = 8;  // in registers
#else
constexpr int kMostRows = 4, kMostSums = 4;
#endif

enum Scratch { kOrder, kSums, kWidened };

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows order[first] to order[first + rows] have this adapter, or none: then it is negative.
struct Tile {
  int64_t first, rows, slot, rank;
};

// A batch's rows by their adapters, in the calling thread's scratch.
struct Plan {
  int32_t* order;
  Tile* tiles;
  int64_t num_tiles;
};

Plan plan_of(const LoraParams& p) {
  const int64_t most = ceil_div(p.m, kTileRows) + p.adapters + 1, starts = p.adapters + 2;
  auto* memory = static_cast<char*>(thread_scratch(
      kOrder, most * static_cast<int64_t>(sizeof(Tile)) + (starts + p.m) * static_cast<int64_t>(sizeof(int32_t))));
  Plan plan{reinterpret_cast<int32_t*>(memory + most * static_cast<int64_t>(sizeof(Tile))) + starts,
            reinterpret_cast<Tile*>(memory), 0};
  int32_t* start = plan.order - starts;  // of each group, none's first
  for (int64_t i = 0; i < starts; ++i) start[i] = 0;
  auto group = [&](int64_t row) { return p.slots[row] < 0 ? 0 : p.slots[row] + 1; };
  for (int64_t row = 0; row < p.m; ++row) ++start[group(row) + 1];
  for (int64_t i = 1; i < starts; ++i) start[i] += start[i - 1];
  for (int64_t i = 0; i <= p.adapters; ++i) {
    const int64_t rank = i == 0 ? 0 : p.most_rank(i - 1);
    for (int64_t first = start[i]; first < start[i + 1]; first += kTileRows) {
      plan.tiles[plan.num_tiles++] = {first, min(kTileRows, start[i + 1] - first), i - 1, rank};
    }
  }
  for (int64_t row = 0; row < p.m; ++row) plan.order[start[group(row)]++] = static_cast<int32_t>(row);
  return plan;
}

// ---- x @ a^T: sums[chunk][place in order][part * rank] ----

template <class T>
const float* float_row(const T* x, int64_t n, float* room) {
  for (int64_t i = 0; i < n; i += kLanes) store_first(room + i, load_first(x + i, n - i), n - i);
  return room;
}
inline const float* float_row(const float* x, int64_t, float*) { return x; }

template <int kRows, class A>
PYBATCH_INLINE void shrink_rows(const float* const* x, const A* a, int64_t k, float* out, int64_t stride) {
  F32x16 sum[kRows][2];
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = zeros();
  int64_t i = 0;
  for (; i + 2 <= k; i += 2) {
    const F32x16 even = load(a + i * kLanes), odd = load(a + (i + 1) * kLanes);
    for (int r = 0; r < kRows; ++r) {
      sum[r][0] = fma(broadcast(x[r][i]), even, sum[r][0]);
      sum[r][1] = fma(broadcast(x[r][i + 1]), odd, sum[r][1]);
    }
  }
  if (i < k) {
    const F32x16 last = load(a + i * kLanes);
    for (int r = 0; r < kRows; ++r) sum[r][0] = fma(broadcast(x[r][i]), last, sum[r][0]);
  }
  for (int r = 0; r < kRows; ++r) store(out + r * stride, sum[r][0] + sum[r][1]);
}

template <class T, class A>
void shrink(const LoraParams& p, const Plan& plan, float* sums) {
  const int64_t runs = p.sums() / kLanes, of_part = p.rank / kLanes, chunks = ceil_div(p.k, kChunk);
  const int64_t work = min(p.m, kTileRows) * min(p.k, kChunk);
  parallel_for(plan.num_tiles * runs * chunks, ceil_div(kWorkPerThread, work), [&](int64_t item, int64_t end) {
    auto* room =
        static_cast<float*>(thread_scratch(kWidened, kMostRows * kChunk * static_cast<int64_t>(sizeof(float))));
    for (; item < end; ++item) {
      const Tile& tile = plan.tiles[item / (runs * chunks)];
      const int64_t chunk = item / runs % chunks, run = item % runs, part = run / of_part;
      if (tile.slot < 0 || run % of_part * kLanes >= tile.rank || p.ranks[tile.slot * p.parts + part] == 0) continue;
      const int64_t first = chunk * kChunk, k = min(kChunk, p.k - first);
      const A* a = static_cast<const A*>(p.a) + ((tile.slot * runs + run) * p.k + first) * kLanes;
      float* out = sums + (chunk * p.m + tile.first) * p.sums() + run * kLanes;
      for (int64_t row = 0; row < tile.rows;) {
        const float* x[kMostRows];
        const int64_t rows = tile.rows - row >= kMostRows ? kMostRows : 1;
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = plan.order[tile.first + row + r] * p.x.row_stride + first;
          x[r] = float_row(static_cast<const T*>(p.x.data) + at, k, room + r * kChunk);
        }
        if (rows == kMostRows) {
          shrink_rows<kMostRows>(x, a, k, out + row * p.sums(), p.sums());
        } else {
          shrink_rows<1>(x, a, k, out + row * p.sums(), p.sums());
        }
        row += rows;
      }
    }
  });
}

// ---- those @ b^T ----

// Some panels of some rows: product += sums @ b^T.
template <int kRows, int kPanels, class T, class B>
PYBATCH_INLINE void expand_rows(const LoraParams& p, const int64_t* panels, const B* b, int64_t rank,
                                const float* const* sums, T* const* product) {
  F32x16 sum[kRows][kPanels];
  const B* of_panel[kPanels];
  int64_t offset[kPanels];
  for (int i = 0; i < kPanels; ++i) {
    of_panel[i] = b + panels[i] * p.rank * kLanes;
    offset[i] = p.panels[panels[i]].part * p.rank;
    for (int r = 0; r < kRows; ++r) sum[r][i] = zeros();
  }
  for (int64_t j = 0; j < rank; ++j) {
    for (int i = 0; i < kPanels; ++i) {
      const F32x16 w = load(of_panel[i] + j * kLanes);
      for (int r = 0; r < kRows; ++r) sum[r][i] = fma(broadcast(sums[r][offset[i] + j]), w, sum[r][i]);
    }
  }
  for (int i = 0; i < kPanels; ++i) {
    const LoraPanel& panel = p.panels[panels[i]];
    for (int r = 0; r < kRows; ++r) {
      T* out = product[r] + panel.column;
      store_first(out, load_first(out, panel.columns) + sum[r][i], panel.columns);
    }
  }
}

template <int kRows, class T, class B>
void expand_panels(const LoraParams& p, const int64_t* panels, int64_t count, const B* b, int64_t rank,
                   const float* const* sums, T* const* product) {
  constexpr int kPanels = kMostSums / kRows;
  int64_t i = 0;
  for (; i + kPanels <= count; i += kPanels) expand_rows<kRows, kPanels>(p, panels + i, b, rank, sums, product);
  for (; i < count; ++i) expand_rows<kRows, 1>(p, panels + i, b, rank, sums, product);
}

template <class T, class Activation>
void activate(const LoraParams& p, int64_t row, int64_t panel, int64_t end, const Activation& activation) {
  const T* product = static_cast<const T*>(p.product.data) + row * p.product.row_stride;
  T* out = static_cast<T*>(p.out.data) + row * p.out.row_stride;
  for (; panel < end; panel += 2) {
    const int64_t column = panel / 2 * kPanel, gate = panel * kPanel;
    const F32x16 up = load(product + gate + kPanel);
    store_first(out + column, activation(load(product + gate)) * up, p.width - column);
  }
}

// The sums of a row over all chunks of k, in place of the first's.
void add_chunks(const LoraParams& p, const Plan& plan, float* sums) {
  const int64_t chunks = ceil_div(p.k, kChunk);
  if (chunks == 1) return;
  parallel_for(p.m, ceil_div(kWorkPerThread, chunks * p.sums() / kLanes), [&](int64_t place, int64_t end) {
    for (; place < end; ++place) {
      if (p.slots[plan.order[place]] < 0) continue;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        float* to = sums + place * p.sums();
        const float* from = to + chunk * p.m * p.sums();
        for (int64_t i = 0; i < p.sums(); i += kLanes) store(to + i, load(to + i) + load(from + i));
      }
    }
  });
}

template <class T, class B>
void expand_tile(const LoraParams& p, const Plan& plan, const float* sums, const Tile& tile, int64_t panel,
                 int64_t end) {
  int64_t changed[kTilePanels], count = 0;
  for (int64_t i = panel; i < end && tile.slot >= 0; ++i) {
    if (p.ranks[tile.slot * p.parts + p.panels[i].part] > 0) changed[count++] = i;
  }
  const B* b = static_cast<const B*>(p.b) + (count > 0 ? tile.slot * p.num_panels * p.rank * kLanes : 0);
  for (int64_t row = 0; row < tile.rows && count > 0;) {
    const float* from[kMostRows];
    T* product[kMostRows];
    const int64_t rows = tile.rows - row >= kMostRows ? kMostRows : 1;
    for (int64_t r = 0; r < rows; ++r) {
      from[r] = sums + (tile.first + row + r) * p.sums();
      product[r] = static_cast<T*>(p.product.data) + plan.order[tile.first + row + r] * p.product.row_stride;
    }
    if (rows == kMostRows) {
      expand_panels<kMostRows>(p, changed, count, b, tile.rank, from, product);
    } else {
      expand_panels<1>(p, changed, count, b, tile.rank, from, product);
    }
    row += rows;
  }
  if (p.epilogue == Epilogue::store) return;
  for (int64_t row = 0; row < tile.rows; ++row) {
    const int64_t at = plan.order[tile.first + row];
    if (p.epilogue == Epilogue::silu_mul) {
      activate<T>(p, at, panel, end, [](F32x16 x) { return silu(x); });
    } else {
      activate<T>(p, at, panel, end, [](F32x16 x) { return gelu_tanh(x); });
    }
  }
}

}  // namespace

void add_lora(const LoraParams& p) {
  const Plan plan = plan_of(p);
  const int64_t chunks = ceil_div(p.k, kChunk), blocks = ceil_div(p.num_panels, kTilePanels);
  auto* sums =
      static_cast<float*>(thread_scratch(kSums, chunks * p.m * p.sums() * static_cast<int64_t>(sizeof(float))));
  with_float_type(p.dtype, [&](auto* weight) {
    using Weight = std::remove_pointer_t<decltype(weight)>;
    with_float_type(p.x.dtype, [&](auto* x) { shrink<std::remove_pointer_t<decltype(x)>, Weight>(p, plan, sums); });
    add_chunks(p, plan, sums);
    with_float_type(p.product.dtype, [&](auto* product) {
      using T = std::remove_pointer_t<decltype(product)>;
      const int64_t work = min(p.m, kTileRows) * kTilePanels * p.rank;
      parallel_for(plan.num_tiles * blocks, ceil_div(kWorkPerThread, work), [&](int64_t item, int64_t end) {
        for (; item < end; ++item) {
          const int64_t panel = item % blocks * kTilePanels;
          expand_tile<T, Weight>(p, plan, sums, plan.tiles[item / blocks], panel,
                                 min(panel + kTilePanels, p.num_panels));
        }
      });
    });
  });
}

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
