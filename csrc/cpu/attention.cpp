#include "pybatch/attention.h"

#include "cpu/attention_partial.h"
#include "cpu/attention_plan.h"
#include "cpu/attention_split.h"
#include "pybatch/parallel.h"

#if defined(PYBATCH_ISA_AMX)
#include "cpu/attention_split_tiles.h"
#endif

namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
namespace {

enum Scratch { kPlan, kPartials, kWork };

class Attention : AttentionCall {
 public:
  explicit Attention(const PagedAttentionParams& p) : AttentionCall(p) {}

  void run();

 private:
  void run_items(Items items, const SplitAttention& attention, Partial state, Partial part) const;
  void merge_spread(const SequencePlan* plans) const;
  Partial partial(int64_t index) const { return partial_at(*this, partials + index * partial_floats(*this)); }

  float* partials = nullptr;  // of spread tiles
};

// state, part: what the splits of a tile so far have come to, and the next.
void Attention::run_items(Items items, const SplitAttention& attention, Partial state, Partial part) const {
  Item item;
  for (bool more = items.take(item); more;) {
    const Item now = item;
    const Partial into = now.partial < 0 ? state : partial(now.partial);
    attention.load_queries(now.tile);
    for (int64_t split = now.split; split < now.end; ++split) {
      const bool last = split + 1 == now.end;
      if (last) more = items.take(item);  // as late as possible, so that another thread may take it before
      const int64_t then_split = !last ? split + 1 : more ? item.split : split;
      attention.attend(now.tile, split, item.tile, then_split, split == now.split ? into : part);
      if (split > now.split) merge(*this, now.tile, part, into);
    }
    if (now.partial < 0) finish(*this, now.tile, into);
  }
}

void Attention::merge_spread(const SequencePlan* plans) const {
  for (int64_t s = 0; s < p.sequences; ++s) {
    const SequencePlan& plan = plans[s];
    if (!plan.spread) continue;
    parallel_for(plan.tiles * plan.head_tiles, 4, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const Tile tile = tile_of(*this, plan, s, index);
        const int64_t first = plan.first_partial + index * plan.splits;
        for (int64_t split = first + 1; split < first + plan.splits; ++split) {
          merge(*this, tile, partial(split), partial(first));
        }
        finish(*this, tile, partial(first));
      }
    });
  }
}

void Attention::run() {
  const int64_t threads = num_threads(), plan_bytes = (p.sequences + 1) * static_cast<int64_t>(sizeof(SequencePlan));
  auto* plans = static_cast<SequencePlan*>(thread_scratch(kPlan, plan_bytes));
  make_plans(*this, threads, plans);
  const SequencePlan& end = plans[p.sequences];
  partials = static_cast<float*>(thread_scratch(kPartials, end.first_partial * partial_floats(*this) * 4));
  int64_t next = 0;
  parallel_for(smaller(end.first_item, threads), 1, [&](int64_t, int64_t) {
    SplitAttention attention(*this);
    const int64_t partial_bytes = round_up(partial_floats(*this) * static_cast<int64_t>(sizeof(float)), 64);
    auto* buffers = static_cast<char*>(thread_scratch(kWork, 2 * partial_bytes + attention.lay_out(nullptr)));
    attention.lay_out(buffers + 2 * partial_bytes);
    auto own_partial = [&](int64_t i) {
      return partial_at(*this, reinterpret_cast<float*>(buffers + i * partial_bytes));
    };
    const Items items(*this, plans, &next);
#if defined(PYBATCH_ISA_AMX)
    if (p.cache.has_scales()) {
      const TilesInUse tiles{TileShapes()};
      return run_items(items, attention, own_partial(0), own_partial(1));
    }
#endif
    run_items(items, attention, own_partial(0), own_partial(1));
  });
  if (end.first_partial > 0) merge_spread(plans);
}

}  // namespace

void paged_attention(const PagedAttentionParams& p) { Attention(p).run(); }

}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
