// The CUDA backend: kernels run on torch's current stream, on the device of their tensors. Values are not checked,
// since reading them would synchronise with the host and could not be captured in a CUDA graph.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include "cuda/kernels.h"
#include "torch_ops/ops.h"

namespace {

using namespace pybatch;

int32_t current_device() {
  int32_t index = 0;
  EXPECT(aoti_torch_get_current_device_index(&index) == 0, "torch has no current CUDA device");
  return index;
}

// From libtorch_cuda, found at run time so that the build needs no torch with CUDA.
cudaStream_t current_stream() {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto get = [] {
    void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return torch_cuda == nullptr ? nullptr
                                 : reinterpret_cast<Function>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
  }();
  void* stream = nullptr;
  EXPECT(get != nullptr && get(current_device(), &stream) == 0,
         "torch gave no CUDA stream; is this a CUDA build of it?");
  return static_cast<cudaStream_t>(stream);
}

struct Cuda {
  static constexpr const char* kDevice = "the CUDA device of the other arguments";
  static constexpr bool kHasE4m3 = true;
  struct Scope {
    explicit Scope(const Tensor& t) : guard(t.defined() && t.is_cuda() ? t.get_device_index() : current_device()) {}
    torch::stable::accelerator::DeviceGuard guard;
  };
  static bool holds(const Tensor& t) { return t.is_cuda() && t.get_device_index() == current_device(); }
  static bool reaches(const Tensor& t) {
    cudaPointerAttributes attributes{};
    return holds(t) || (cudaPointerGetAttributes(&attributes, t.data_ptr()) == cudaSuccess &&
                        attributes.type == cudaMemoryTypeHost);
  }
  static void uses(const Tensor&, const char*) {}
  static void writes(const Tensor&) {}
  template <class Check>
  static void verify(const Check&, std::initializer_list<const void*>) {}

#define PYBATCH_RUN(name, Params) \
  static void name(const Params& p) { cuda::name(p, current_stream()); }
  PYBATCH_RUN(rms_norm, NormParams)
  PYBATCH_RUN(layer_norm, NormParams)
  PYBATCH_RUN(gelu, ActivationParams)
  PYBATCH_RUN(gelu_tanh, ActivationParams)
  PYBATCH_RUN(relu2, ActivationParams)
  PYBATCH_RUN(xielu, XieluParams)
  PYBATCH_RUN(gated_rms_norm, GatedNormParams)
  PYBATCH_RUN(add_normed, AddNormedParams)
  PYBATCH_RUN(silu_mul, GatedActivationParams)
  PYBATCH_RUN(gelu_tanh_mul, GatedActivationParams)
  PYBATCH_RUN(clamped_swiglu, ClampedSwigluParams)
  PYBATCH_RUN(sigmoid_mul, GateParams)
  PYBATCH_RUN(gelu_tanh_gate, GateParams)
  PYBATCH_RUN(embedding, EmbeddingParams)
  PYBATCH_RUN(rope_kv_write, RopeKvWriteParams)
  PYBATCH_RUN(copy_blocks, CopyBlocksParams)
  PYBATCH_RUN(route_experts, RouteParams)
  PYBATCH_RUN(rotate_keys, RotateKeysParams)
  PYBATCH_RUN(gather_kv, GatherKvParams)
  PYBATCH_RUN(causal_conv, CausalConvParams)
  PYBATCH_RUN(gated_delta_rule, GatedDeltaParams)
  PYBATCH_RUN(scale_logits, ScaleLogitsParams)
  PYBATCH_RUN(sample, SampleParams)
  PYBATCH_RUN(token_logprobs, TokenLogprobsParams)
#undef PYBATCH_RUN

  // Returned to torch's allocator with the tensor; stream order keeps it from being reused too early.
  static Tensor workspace(int64_t bytes) {
    const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, current_device());
    return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, device);
  }

#define PYBATCH_RUN_WITH_WORKSPACE(name, Params)                                    \
  static void name(const Params& p) {                                               \
    const Tensor room = workspace(static_cast<int64_t>(cuda::name##_workspace(p))); \
    cuda::name(p, room.data_ptr(), current_stream());                               \
  }
  PYBATCH_RUN_WITH_WORKSPACE(attention_mass, AttentionMassParams)
  PYBATCH_RUN_WITH_WORKSPACE(adjust_logits, AdjustLogitsParams)
  PYBATCH_RUN_WITH_WORKSPACE(add_lora, LoraParams)
#undef PYBATCH_RUN_WITH_WORKSPACE
  // Where the caller keeps no counters, those of this call are zeroed before it.
  static void paged_attention(const PagedAttentionParams& params) {
    PagedAttentionParams p = params;
    const int64_t own = p.counters == nullptr ? (1 + p.sequences * p.heads) * static_cast<int64_t>(sizeof(int32_t)) : 0;
    const Tensor counters = workspace(own), room = workspace(static_cast<int64_t>(cuda::paged_attention_workspace(p)));
    if (own > 0) {
      p.counters = static_cast<int32_t*>(counters.data_ptr());
      EXPECT(cudaMemsetAsync(p.counters, 0, static_cast<size_t>(own), current_stream()) == cudaSuccess,
             "paged_attention: CUDA set no memory");
    }
    cuda::paged_attention(p, room.data_ptr(), current_stream());
  }

  // Runs f with x normalised, if the matmul has a norm.
  template <class F>
  static void behind_norm(MatmulParams p, const F& f) {
    if (p.norm == nullptr) return f(p);
    const Tensor normed = workspace(p.x_rows() * p.k * size_of(p.x.dtype));
    const Matrix rows{normed.data_ptr(), p.k, p.x.dtype};
    rms_norm({p.x, {}, rows, p.norm, nullptr, p.norm_eps, p.x_rows(), p.k});
    p.x = {rows.data, rows.row_stride, rows.dtype};
    f(p);
  }
  // Runs f; where rows are summed over experts, into a workspace, and then sums them.
  template <class F>
  static void before_sum(const MatmulParams& p, const F& f) {
    if (p.experts.places == nullptr) return f(p);
    const Tensor products = workspace(p.m * p.width * size_of(p.out.dtype));
    MatmulParams unsummed = p;
    unsummed.out = {products.data_ptr(), p.width, p.out.dtype};
    unsummed.epilogue = Epilogue::store;
    f(unsummed);
    cuda::sum_over_experts(p, products.data_ptr(), current_stream());
  }
  template <class F>
  static void around(const MatmulParams& params, const F& f) {
    behind_norm(params, [&](const MatmulParams& p) { before_sum(p, f); });
  }
  static void matmul_dense(const MatmulParams& params) {
    around(params, [](const MatmulParams& p) { cuda::matmul_dense(p, current_stream()); });
  }
  static void matmul_w8a16(const MatmulParams& params) {
    around(params, [](const MatmulParams& p) {
      if (p.weight_dtype != DType::e4m3) return cuda::matmul_w8a16(p, current_stream());
      (p.in_blocks ? cuda::matmul_e4m3_blocks : cuda::matmul_e4m3)(p, current_stream());
    });
  }
  static void matmul_w8a8(const MatmulParams& params) {
    before_sum(params, [](const MatmulParams& p) {
      const Tensor room = workspace(static_cast<int64_t>(cuda::matmul_w8a8_workspace(p)));
      cuda::matmul_w8a8(p, room.data_ptr(), current_stream());
    });
  }
  static void matmul_gguf(const MatmulParams& params) {
    around(params, [](const MatmulParams& p) {
      const Tensor room = workspace(static_cast<int64_t>(cuda::matmul_gguf_workspace(p)));
      cuda::matmul_gguf(p, room.data_ptr(), current_stream());
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pybatch, CUDA, m) { implement_ops<Cuda>(m); }
