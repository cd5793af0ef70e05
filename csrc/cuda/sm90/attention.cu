// A block takes 128 query rows of one KV head, 64 a warpgroup, and passes over the K and V that they see: one warpgroup
// copies, two multiply. wgmma reads K and V in shared memory; its accumulators are laid out as those of mma.m16n8k16,
// and so a warp's sixteen rows go through the softmax of ../attention_kernel.cuh.
//
// While a warpgroup turns the logits of a tile into weights, its product of the tile before with V is under way, and
// the other warpgroup multiplies.
#include "cuda/attention_kernel.cuh"
#include "cuda/launch.cuh"
#include "cuda/sm90/attention.cuh"
#include "cuda/sm90/attention_config.cuh"
#include "cuda/sm90/attention_copy.cuh"
#include "cuda/sm90/wgmma.cuh"

namespace pybatch::cuda {
namespace {

template <class T, int kN>
__device__ __forceinline__ void multiply(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  if constexpr (std::is_same_v<T, f16>) {
    wgmma_m64k16_f16<kN, true>(d, a, b, accumulate);
  } else {
    wgmma_m64k16_bf16<kN, true>(d, a, b, accumulate);
  }
}

// Where an element of V lies in its part of a stage.
template <class T, class Config>
__device__ __forceinline__ const T* value_at(const T* v, int token, int dim) {
  const int row = dim / 64 * Config::kTile + token, run = dim % 64 / kRun ^ token % 8;
  return v + row * 64 + run * kRun + dim % kRun;
}

// The tiles of a warpgroup's rows: those that a row sees something of, and among them those that all see all of.
struct Tiles {
  int first, end, first_whole, end_whole;

  template <class Config>
  static __device__ __forceinline__ Tiles of(const PagedAttentionParams& p, const Item& item, int row) {
    constexpr int kTile = Config::kTile;
    if (row >= item.end_row) return {0, 0, 0, 0};
    const int end_row = row + Config::kGroupRows < item.end_row ? row + Config::kGroupRows : item.end_row;
    const int first = item.first_position + row / item.group;
    const int last = item.first_position + (end_row - 1) / item.group;
    auto begin = [&](int position) {
      const int window = static_cast<int>(p.window);
      return window > 0 && position >= window ? position - window + 1 : 0;
    };
    return {begin(first) / kTile, last / kTile + 1, (begin(last) + kTile - 1) / kTile, (first + 1) / kTile};
  }
  // The same, known to the compiler to be so for all lanes: else it does not let a wgmma run on past a branch.
  __device__ __forceinline__ Tiles uniform() const {
    return {__shfl_sync(kAllLanes, first, 0), __shfl_sync(kAllLanes, end, 0), __shfl_sync(kAllLanes, first_whole, 0),
            __shfl_sync(kAllLanes, end_whole, 0)};
  }
  __device__ __forceinline__ bool whole(int tile) const { return tile >= first_whole && tile < end_whole; }
};

// A multiplying warpgroup.
template <class T, class Config>
class Prefill {
 public:
  __device__ __forceinline__ Prefill(const PagedAttentionParams& p, const PrefillShared<T, Config>& shared, int group)
      : p_(p), shared_(shared), group_(group) {
    const int warp = group * 4 + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp;
    totals_ = reinterpret_cast<float4*>(shared.bytes + Config::kTotals) + warp * (kHeadDim / 8 * kWarp) + lane();
  }

  // The count-th item of the block; false behind the last.
  __device__ __forceinline__ bool attend(uint32_t count) {
    wait_for(shared_.q_filled, count);
    const Item item = *shared_.item;
    if (item.sequence < 0) return false;
    load_q();
    arrive_as_warp(shared_.q_emptied);

    const int group_row = item.row + group_ * Config::kGroupRows;
    const int warp_row = group_row + static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * kAttentionRows;
    const Visible visible = visible_to(item, warp_row);
    const Tiles tiles = Tiles::of<Config>(p_, item, group_row).uniform();
    const int first = item.begin / kTile, end = (item.end + kTile - 1) / kTile;
    if (tiles.first == tiles.end) {
      skip(end - first);
      return true;
    }
    skip(tiles.first - first);
    attend(tiles, visible);
    skip(end - tiles.end);
    write(item, warp_row);
    return true;
  }

 private:
  static constexpr int kHeadDim = Config::kHeadDim, kTile = Config::kTile;
  static constexpr int kTilesASplit = kAttentionSplit / kTile;
  static constexpr uint64_t kSixteenRows = 16 * Config::kRowBytes >> 4;  // in a descriptor
  using Steps = typename Config::Steps;

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  __device__ __forceinline__ void load_q() {
    const int row = static_cast<int>(threadIdx.x) % kWarpgroup / kWarp * kAttentionRows + lane() % 16;
    const T* q = shared_.q + (group_ * Config::kGroupRows + row) * Config::kQPitch + lane() / 16 * kRun;
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) ldmatrix_x4(q_[i], q + 16 * i);
  }

  __device__ __forceinline__ Visible visible_to(const Item& item, int warp_row) const {
    Visible visible;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int mine = warp_row + lane() / 4 + 8 * r, row = mine < item.end_row ? mine : item.end_row - 1;
      const int position = item.first_position + row / item.group, window = static_cast<int>(p_.window);
      visible.first[r] = window > 0 && position >= window ? position - window + 1 : 0;
      visible.last[r] = position;
    }
    return visible;
  }

  // Tiles that this warpgroup sees nothing of.
  __device__ __forceinline__ void skip(int tiles) {
    for (int i = 0; i < tiles; ++i) {
      wait_for(shared_.filled + turn_.stage, turn_.round);
      free_stage();
    }
  }
  __device__ __forceinline__ void free_stage() {
    arrive_as_warp(shared_.emptied + turn_.stage);
    turn_.advance();
  }

  // s_ = the logits of the tile in the stage, once it is waited for.
  __device__ __forceinline__ void start_qk(const Turn<Config::kStages>& turn) {
    wait_for(shared_.filled + turn.stage, turn.round);
    const uint64_t k = wgmma_descriptor_n_major(shared_.keys(turn.stage), 0);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) multiply<T, kTile>(s_, q_[i], k + i * kSixteenRows, i > 0);
    wgmma_commit();
  }

  // part_.out = weights_ * V, once it is waited for; a split's later tiles add to it.
  __device__ __forceinline__ void start_pv(const T* values, bool new_split) {
    auto& out = reinterpret_cast<float (&)[kHeadDim / 2]>(part_.out);
    const uint64_t v = wgmma_descriptor_n_major(values, Config::kHalfBytes);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kTile / 16; ++i)
      multiply<T, kHeadDim>(out, weights_[i], v + i * kSixteenRows, i > 0 || !new_split);
    wgmma_commit();
  }

  __device__ __forceinline__ void attend(const Tiles& tiles, const Visible& visible) {
    auto& out = reinterpret_cast<float (&)[kHeadDim / 2]>(part_.out);
    auto& s = reinterpret_cast<float (&)[kTile / 8][4]>(s_);
    for (int r = 0; r < 2; ++r) max_[r] = -INFINITY, sum_[r] = 0.0f;
    merged_ = false;
    start_qk(turn_);
    wgmma_commit();  // in the place of a product with V
    for (int tile = tiles.first;; ++tile) {
      // The weights of the tile, while the tile before is multiplied with V.
      wgmma_wait<1>();
      wgmma_settled(s_);
      const bool whole = tiles.whole(tile), begins = tile == tiles.first;
      const bool new_split = begins || tile % kTilesASplit == 0;
      mask_logits<T, T, Steps>(s, p_, nullptr, tile * kTile, visible, whole, lane());
      const float max[2] = {part_.max[0], part_.max[1]}, sum[2] = {part_.sum[0], part_.sum[1]};  // of the split before
      if (new_split) {
        for (int r = 0; r < 2; ++r) part_.max[r] = -INFINITY, part_.sum[r] = 0.0f;
      }
      float rescale[2];
      softmax_weights<kTile, kHeadDim>(s, part_, rescale);
      wgmma_wait<0>();
      wgmma_settled(out);
      if (!begins) free_stage();
      if (!new_split) {
        rescale_output(part_, rescale);
      } else if (!begins) {
        merge(max, sum);
      }

      const T* v = reinterpret_cast<const T*>(shared_.values(turn_.stage));
      const bool by_wgmma = whole || !has_not_finite(v);
      if (by_wgmma) {
#pragma unroll
        for (int i = 0; i < kTile / 16; ++i) load_weights<T, T, Steps>(weights_[i], s, 2 * i, nullptr, lane());
      } else {
        multiply_not_finite(s, v, tile * kTile, visible, new_split);
      }
      if (tile + 1 == tiles.end) {
        if (by_wgmma) start_pv(v, new_split);
        break;
      }
      auto next = turn_;
      next.advance();
      start_qk(next);
      if (by_wgmma) {
        start_pv(v, new_split);
      } else {
        wgmma_commit();  // in the place of the product with V
      }
    }
    wgmma_wait<0>();
    wgmma_settled(out);
    free_stage();
  }

  // Whether V of a tile has an inf or NaN. All of the group call together.
  __device__ __forceinline__ bool has_not_finite(const T* v) {
    uint32_t found = 0;
    const auto* at = reinterpret_cast<const uint4*>(v) + static_cast<int>(threadIdx.x) % kWarpgroup;
#pragma unroll
    for (int i = 0; i < Config::kPartBytes / 16 / kWarpgroup; ++i) {
      uint4 x = at[i * kWarpgroup];
      found |= Mma<T>::zero_not_finite(x.x) | Mma<T>::zero_not_finite(x.y) | Mma<T>::zero_not_finite(x.z) |
               Mma<T>::zero_not_finite(x.w);
    }
    // A word a warp, of two sets in turn: while one is read, the next is written.
    uint32_t* words = shared_.found + 4 * (2 * group_ + scans_++ % 2);
    const bool in_warp = __any_sync(kAllLanes, found != 0);
    if (lane() == 0) words[static_cast<int>(threadIdx.x) % kWarpgroup / kWarp] = in_warp;
    named_barrier_sync(1 + group_, kWarpgroup);
    const uint4 in_group = *reinterpret_cast<const uint4*>(words);
    return __shfl_sync(kAllLanes, in_group.x | in_group.y | in_group.z | in_group.w, 0) != 0;
  }

  // The same where V has an inf or NaN and some rows do not see all of V: their weights are zero, which it
  // would turn into NaN. It is left out, by mma.sync, which takes V from registers, and added where it is seen. This
  // hardly ever runs: its arrays are indexed at run time, and so in local memory.
  __device__ __forceinline__ void multiply_not_finite(const float (&s)[kTile / 8][4], const T* v, int first,
                                                      const Visible& visible, bool new_split) {
    float weights[kTile / 8][4], out[kHeadDim / 8][4];
#pragma unroll
    for (int i = 0; i < kTile / 2; ++i) weights[i / 4][i % 4] = s[i / 4][i % 4];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i / 4][i % 4] = new_split ? 0.0f : part_.out[i / 4][i % 4];
#pragma unroll 1
    for (int j = 0; j < kHeadDim / 8; ++j) {
#pragma unroll 1
      for (int i = 0; i < kTile / 16; ++i) {
        uint32_t a[4], b[2];
        load_weights<T, T, Steps>(a, weights, 2 * i, nullptr, lane());
        ldmatrix_x2_trans(b, value_at<T, Config>(v, 16 * i + lane() % 16, 8 * j));
        for (uint32_t& pair : b) Mma<T>::zero_not_finite(pair);
        Mma<T>::multiply(out[j], a, b);
      }
    }
#pragma unroll 1
    for (int i = 0; i < kTile; ++i) {  // lane i / 2 % 4 of a row has the weight of token i
      float weight[2];
      for (int r = 0; r < 2; ++r) {
        weight[r] = __shfl_sync(kAllLanes, weights[i / 8][2 * r + i % 2], lane() / 4 * 4 + i / 2 % 4);
        weight[r] = to_float(from_float<T>(weight[r]));
      }
#pragma unroll 1
      for (int j = 0; j < kHeadDim / 8; ++j) {
        for (int e = 0; e < 4; ++e) {
          const float x = to_float(*value_at<T, Config>(v, i, TileReader<T, T>::column(j, lane() % 4, e % 2)));
          if (!isfinite(x) && visible.sees(e / 2, first + i)) out[j][e] += weight[e / 2] * x;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) part_.out[i / 4][i % 4] = out[i / 4][i % 4];
  }

  // Adds the output of a split, with its maximum and sum, to the totals.
  __device__ __forceinline__ void merge(const float (&max)[2], const float (&sum)[2]) {
    MergeWeights w[2];
    merge_rows(w, max, sum);
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      float4& total = totals_[j * kWarp];
      const float4 before = merged_ ? total : float4{};
      total = merged(w, before, j);
    }
    merged_ = true;
  }
  __device__ __forceinline__ void merge_rows(MergeWeights (&w)[2], const float (&max)[2], const float (&sum)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      w[r] = merge_weights(max_[r], max[r]);
      max_[r] = w[r].max;
      sum_[r] = cuda::merge(w[r], sum_[r], row_sum(sum[r]));
    }
  }
  __device__ __forceinline__ float4 merged(const MergeWeights (&w)[2], float4 before, int j) const {
    return make_float4(cuda::merge(w[0], before.x, part_.out[j][0]), cuda::merge(w[0], before.y, part_.out[j][1]),
                       cuda::merge(w[1], before.z, part_.out[j][2]), cuda::merge(w[1], before.w, part_.out[j][3]));
  }

  __device__ __forceinline__ void write(const Item& item, int warp_row) {
    MergeWeights w[2];
    merge_rows(w, part_.max, part_.sum);
    float inverse[2];
    T* to[2];
    bool valid[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_row + lane() / 4 + 8 * r, head = item.kv_head * item.group + row % item.group;
      valid[r] = row < item.end_row;
      inverse[r] = inverse_sum(p_, head, max_[r], sum_[r]);
      const int64_t token = p_.query_start[item.sequence] + row / item.group;
      to[r] = static_cast<T*>(p_.out.data) + token * p_.out.row_stride + head * kHeadDim + 2 * (lane() % 4);
    }
#pragma unroll
    for (int j = 0; j < kHeadDim / 8; ++j) {
      const float4 total = merged(w, merged_ ? totals_[j * kWarp] : float4{}, j);
      const uint32_t top = Mma<T>::pack(total.x * inverse[0], total.y * inverse[0]);
      const uint32_t bottom = Mma<T>::pack(total.z * inverse[1], total.w * inverse[1]);
      if (valid[0]) *reinterpret_cast<uint32_t*>(to[0] + 8 * j) = top;
      if (valid[1]) *reinterpret_cast<uint32_t*>(to[1] + 8 * j) = bottom;
    }
  }

  const PagedAttentionParams& p_;
  const PrefillShared<T, Config>& shared_;
  int group_;
  Turn<Config::kStages> turn_;
  uint32_t q_[kHeadDim / 16][4], weights_[kTile / 16][4];
  float s_[kTile / 2];  // logits, then weights, of a tile
  Part<kHeadDim> part_;
  float4* totals_;  // the lane's, of the splits before; until then nothing
  float max_[2], sum_[2];
  bool merged_;
  uint32_t scans_ = 0;  // of has_not_finite
};

template <class T, int kHeadDim>
__global__ void __launch_bounds__(PrefillConfig<T, kHeadDim>::kThreads, 1)
    prefill_kernel(PagedAttentionParams p, Workspace work) {
  begin_kernel();
  using Config = PrefillConfig<T, kHeadDim>;
  const PrefillShared<T, Config> shared;
  if (threadIdx.x == 0) shared.init_barriers();
  __syncthreads();

  if (threadIdx.x < kWarpgroup) {
    setmaxnreg_dec<Config::kCopyRegisters>();
    PrefillCopy<T, Config> copy(p, shared);
    WorkList list(p, work, Phase::prefill, Config::kRows);
    uint32_t count = 0;
    int index = list.first();
    for (; list.find(index); ++count) {
      const int next = threadIdx.x == 0 ? list.next() : 0;  // which comes while the item is copied
      copy.copy(item_of(p, list, index, Config::kRows), count);
      index = copy.told(next, count);
    }
    copy.end(count);
    if (threadIdx.x == 0) list.end(index);
  } else {
    setmaxnreg_inc<Config::kMultiplyRegisters>();
    Prefill<T, Config> prefill(p, shared, static_cast<int>(threadIdx.x) / kWarpgroup - 1);
    for (uint32_t count = 0; prefill.attend(count); ++count) {
    }
  }
}

}  // namespace

bool prefills_by_wgmma(const PagedAttentionParams& p) {
  const KvCache& cache = p.cache;
  const bool aligned = reinterpret_cast<uintptr_t>(p.q.data) % 16 == 0 && p.q.row_stride % kRun == 0 &&
                       reinterpret_cast<uintptr_t>(p.out.data) % 4 == 0 && p.out.row_stride % 2 == 0;
  return takes_untried() && aligned && (cache.head_dim == 64 || cache.head_dim == 128) && cache.block_size >= 16 &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
}

void prefill_wgmma(const PagedAttentionParams& p, const Workspace& work, cudaStream_t stream) {
  with_half_type(p.q.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto run = [&](auto head_dim) {
      using Config = PrefillConfig<T, head_dim>;
      launch(prefill_kernel<T, head_dim>, dim3(multiprocessors()), dim3(Config::kThreads), Config::kSharedBytes, stream,
             p, work);
    };
    p.cache.head_dim == 64 ? run(std::integral_constant<int, 64>()) : run(std::integral_constant<int, 128>());
  });
}

}  // namespace pybatch::cuda
