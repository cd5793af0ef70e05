// add_lora: a block for some neighbouring rows and a run of columns. Rows that have one adapter, as those of a prompt
// do, read its matrices together; others one after another.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/matmul_epilogue.cuh"
#include "pybatch/lora.h"

namespace pybatch::cuda {
namespace {

constexpr int kSlices = 16;  // of k: each sums every sixteenth
constexpr int kShrinkThreads = kSlices * kPanel, kExpandThreads = 128, kExpandPanels = kExpandThreads / kPanel;
constexpr int kManyRows = 8;

// Calls f(slot, first row, rows) for each run of rows, of those from `first` on, that have one adapter.
template <int kRows, class F>
__device__ __forceinline__ void for_runs_of_one(const LoraParams& p, int64_t first, const F& f) {
  const int64_t end = first + kRows < p.m ? first + kRows : p.m;
  for (int64_t row = first; row < end;) {
    const int32_t slot = p.slots[row];
    int64_t next = row + 1;
    while (next < end && p.slots[next] == slot) ++next;
    if (slot >= 0) f(slot, row, static_cast<int>(next - row));
    row = next;
  }
}

// sums[row][part * rank] = x @ a^T, sixteen ranks a block.
template <class T, class Weight, int kRows>
__global__ void __launch_bounds__(kShrinkThreads) shrink_kernel(LoraParams p, float* sums) {
  begin_kernel();
  float* partial = dynamic_shared<float>();  // [kSlices][kPanel]
  const int lane = threadIdx.x % kPanel, slice = threadIdx.x / kPanel;
  const int64_t run = blockIdx.y, of_part = p.rank / kPanel, part = run / of_part, runs = p.sums() / kPanel;
  for_runs_of_one<kRows>(p, static_cast<int64_t>(blockIdx.x) * kRows, [&](int64_t slot, int64_t first, int rows) {
    if (p.ranks[slot * p.parts + part] == 0 || run % of_part * kPanel >= p.most_rank(slot)) return;
    const T* x = static_cast<const T*>(p.x.data) + first * p.x.row_stride;
    const Weight* a = static_cast<const Weight*>(p.a) + (slot * runs + run) * p.k * kPanel + lane;
    float sum[kRows] = {};
    for (int64_t k = slice; k < p.k; k += kSlices) {
      const float w = to_float(a[k * kPanel]);
      for (int r = 0; r < kRows; ++r) {
        if (r < rows) sum[r] = fmaf(to_float(x[r * p.x.row_stride + k]), w, sum[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      __syncthreads();
      partial[threadIdx.x] = sum[r];
      __syncthreads();
      if (slice == 0) {
        float total = partial[lane];
        for (int i = 1; i < kSlices; ++i) total += partial[i * kPanel + lane];
        sums[(first + r) * p.sums() + run * kPanel + lane] = total;
      }
    }
  });
}

// product += sums @ b^T, a thread a column.
template <class Weight, int kRows>
__global__ void __launch_bounds__(kExpandThreads) expand_kernel(LoraParams p, const float* sums) {
  begin_kernel();
  const int64_t index = static_cast<int64_t>(blockIdx.y) * kExpandPanels + threadIdx.x / kPanel;
  const int lane = threadIdx.x % kPanel;
  if (index >= p.num_panels) return;
  const LoraPanel panel = p.panels[index];
  if (lane >= panel.columns) return;
  for_runs_of_one<kRows>(p, static_cast<int64_t>(blockIdx.x) * kRows, [&](int64_t slot, int64_t first, int rows) {
    if (p.ranks[slot * p.parts + panel.part] == 0) return;
    const int64_t rank = p.most_rank(slot);
    const Weight* b = static_cast<const Weight*>(p.b) + (slot * p.num_panels + index) * p.rank * kPanel + lane;
    const float* from = sums + first * p.sums() + panel.part * p.rank;
    float sum[kRows] = {};
    for (int64_t j = 0; j < rank; ++j) {
      const float w = to_float(b[j * kPanel]);
      for (int r = 0; r < kRows; ++r) {
        if (r < rows) sum[r] = fmaf(from[r * p.sums() + j], w, sum[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const int64_t at = (first + r) * p.product.row_stride + panel.column + lane;
      const float before = load_as(p.product.dtype, p.product.data, at);
      store_as(p.product.dtype, p.product.data, at, before + sum[r]);
    }
  });
}

// out = act(gate) * up, a thread a column.
__global__ void __launch_bounds__(kExpandThreads) gated_kernel(LoraParams p) {
  begin_kernel();
  const int64_t row = blockIdx.x, column = static_cast<int64_t>(blockIdx.y) * kExpandThreads + threadIdx.x;
  if (column >= p.width) return;
  const int64_t at = row * p.product.row_stride + column / kPanel * 2 * kPanel + column % kPanel;
  const float gate = load_as(p.product.dtype, p.product.data, at);
  const float up = load_as(p.product.dtype, p.product.data, at + kPanel);
  store_as(p.out.dtype, p.out.data, row * p.out.row_stride + column, activated(p.epilogue, gate) * up);
}

template <int kRows>
void add(const LoraParams& p, float* sums, cudaStream_t stream) {
  const int64_t blocks = ceil_div(p.m, kRows);
  with_float_type(p.dtype, [&](auto* weight) {
    using Weight = std::remove_pointer_t<decltype(weight)>;
    with_float_type(p.x.dtype, [&](auto* x) {
      using T = std::remove_pointer_t<decltype(x)>;
      const dim3 grid(blocks, p.sums() / kPanel);
      launch(shrink_kernel<T, Weight, kRows>, grid, dim3(kShrinkThreads), kShrinkThreads * sizeof(float), stream, p,
             sums);
    });
    const dim3 grid(blocks, ceil_div(p.num_panels, kExpandPanels));
    launch(expand_kernel<Weight, kRows>, grid, dim3(kExpandThreads), 0, stream, p, sums);
  });
}

}  // namespace

size_t add_lora_workspace(const LoraParams& p) { return static_cast<size_t>(p.m * p.sums()) * sizeof(float); }

void add_lora(const LoraParams& p, void* workspace, cudaStream_t stream) {
  auto* sums = static_cast<float*>(workspace);
  p.m > 64 ? add<kManyRows>(p, sums, stream) : add<1>(p, sums, stream);
  if (p.epilogue == Epilogue::store) return;
  launch(gated_kernel, dim3(p.m, ceil_div(p.width, kExpandThreads)), dim3(kExpandThreads), 0, stream, p);
}

}  // namespace pybatch::cuda
