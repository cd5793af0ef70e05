// The CPU backend, and the schemas of all ops.
#include <dlfcn.h>
#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#include "cpu/kernels.h"
#include "pybatch/graph.h"
#include "pybatch/parallel.h"
#include "torch_ops/latent_attention.h"
#include "torch_ops/ops.h"

namespace {

using namespace pybatch;

Graph::Range range_of_storage(const Tensor& t) {
  return {pointer<char>(t) - t.storage_offset() * static_cast<int64_t>(t.element_size()), storage_bytes(t)};
}

// t's storage, owned through a tensor of its first element, since t itself may later be set to another storage.
Graph::Memory storage_of(const Tensor& t) {
  const int64_t size = 1, stride = 1;
  AtenTensorHandle first = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 1, &size, &stride, -t.storage_offset(), &first));
  return {range_of_storage(t), std::make_shared<const Tensor>(first),
          [](const void* owner) -> const void* { return static_cast<const Tensor*>(owner)->data_ptr(); }};
}

struct Cpu {
  static constexpr const char* kDevice = "the CPU";
  static constexpr bool kHasE4m3 = false;
  struct Scope {
    explicit Scope(const Tensor&) {}
  };
  static bool holds(const Tensor& t) { return t.is_cpu(); }
  static bool reaches(const Tensor& t) { return t.is_cpu(); }
  static void uses(const Tensor& t, const char* name) {
    Graph* graph = Graph::recording();
    if (graph == nullptr || graph->keeps(range_of_storage(t))) return;
    graph->keep(name, storage_of(t));
  }
  static void writes(const Tensor& t) {
    if (Graph* graph = Graph::recording()) graph->writes(t.data_ptr());
  }
  template <class Check>
  static void verify(const Check& check, std::initializer_list<const void*> reads) {
    if (Graph* graph = Graph::recording()) {
      graph->check(check, reads);
    } else {
      check();
    }
  }

#define PYBATCH_RUN(name, Params)                \
  static void name(const Params& p) {            \
    if (Graph* graph = Graph::recording()) {     \
      graph->add(#name, cpu::kernels().name, p); \
    } else {                                     \
      cpu::kernels().name(p);                    \
    }                                            \
  }
  PYBATCH_CPU_KERNELS(PYBATCH_RUN)
#undef PYBATCH_RUN
};

// Kernels use as many threads as torch's own ops do.
const bool kThreadsCounted = [] {
  set_num_threads_source([] { return static_cast<int>(torch::stable::get_num_threads()); });
  return true;
}();

// The threads of torch's ops are OpenMP's. They do not exist in a forked child, where OpenMP would wait for
// them forever, so they are ended before a fork; the next parallel region, in parent or child, starts new ones.
int (*pause_openmp)(int kind) = nullptr;

const bool kForkHandled = [] {
  void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);  // a process may have several OpenMPs
  if (torch != nullptr) pause_openmp = reinterpret_cast<int (*)(int)>(dlsym(torch, "omp_pause_resource_all"));
  constexpr int kHard = 2;  // omp_pause_hard
  if (pause_openmp != nullptr) pthread_atfork([] { pause_openmp(kHard); }, nullptr, nullptr);
  return pause_openmp != nullptr;
}();

}  // namespace

STABLE_TORCH_LIBRARY(pybatch, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!)? residual, Tensor(b!) out) -> ()");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps, Tensor(a!)? residual, Tensor(b!) out) -> ()");
  m.def("gelu(Tensor x, Tensor(a!) out) -> ()");
  m.def("gelu_tanh(Tensor x, Tensor(a!) out) -> ()");
  m.def("relu2(Tensor x, Tensor(a!) out) -> ()");
  m.def("xielu(Tensor x, float alpha_p, float alpha_n, float beta, float eps, Tensor(a!) out) -> ()");
  m.def("add_normed(Tensor x, Tensor? weight, float eps, float factor, float scale, Tensor(a!) residual) -> ()");
  m.def("silu_mul(Tensor x, Tensor(a!) out) -> ()");
  m.def("gelu_tanh_mul(Tensor x, Tensor(a!) out) -> ()");
  m.def("clamped_swiglu(Tensor x, float alpha, float limit, Tensor(a!) out) -> ()");
  m.def("sigmoid_mul(Tensor x, Tensor gate, Tensor(a!) out) -> ()");
  m.def("gelu_tanh_gate(Tensor x, Tensor gate, Tensor(a!) out) -> ()");
  m.def("embedding(Tensor ids, Tensor table, Tensor? scale, int vocab, float multiplier, Tensor(a!) out) -> ()");
  m.def(
      "matmul_dense(Tensor x, Tensor weight, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, Tensor(a!) out) "
      "-> ()");
  m.def(
      "matmul_w8a16(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, "
      "Tensor(a!) out) -> ()");
  m.def(
      "matmul_w8a8(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, "
      "Tensor(a!) out) -> ()");
  m.def(
      "matmul_gguf(Tensor x, Tensor weight, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, Tensor(a!) out) "
      "-> ()");
  m.def(
      "experts_dense(Tensor x, Tensor weight, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, "
      "Tensor starts, Tensor? tokens, Tensor? places, Tensor? weights, Tensor(a!) out) -> ()");
  m.def(
      "experts_w8a16(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, "
      "Tensor starts, Tensor? tokens, Tensor? places, Tensor? weights, Tensor(a!) out) -> ()");
  m.def(
      "experts_w8a8(Tensor x, Tensor weight, Tensor scale, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, "
      "Tensor starts, Tensor? tokens, Tensor? places, Tensor? weights, Tensor(a!) out) -> ()");
  m.def(
      "experts_gguf(Tensor x, Tensor weight, Tensor? bias, Tensor? norm, float norm_eps, int epilogue, "
      "Tensor starts, Tensor? tokens, Tensor? places, Tensor? weights, Tensor(a!) out) -> ()");
  m.def(
      "add_lora(Tensor x, Tensor slots, Tensor a, Tensor b, Tensor ranks, Tensor panels, int epilogue, "
      "Tensor(a!) product, Tensor(b!)? out) -> ()");
  m.def(
      "route_experts(Tensor logits, Tensor? bias, Tensor? expert_scale, int scoring, int groups, int top_groups, "
      "int group_best, bool normalize, float scale, Tensor(a!) ids, Tensor(b!) weights, Tensor(c!) starts, Tensor(d!) "
      "order, "
      "Tensor(e!) places) -> ()");
  m.def(
      "rope_kv_write(Tensor(a!) q, Tensor? k, Tensor? v, Tensor positions, Tensor? slots, Tensor rotary, "
      "Tensor? q_norm, Tensor? k_norm, Tensor? v_norm, float norm_eps, bool layer_norm, bool norm_last, Tensor? "
      "query_scale, "
      "bool interleaved, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor(d!)? k_scale, Tensor(e!)? v_scale, "
      "Tensor? key_divisor, Tensor? key_offset) -> ()");
  m.def("copy_blocks(Tensor(a!) pool, Tensor pairs) -> ()");
  m.def("swap_blocks(Tensor src, Tensor(a!) dst, Tensor pairs) -> ()");
  m.def(
      "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? k_scale, Tensor? v_scale, "
      "Tensor block_tables, Tensor query_start, Tensor seq_lens, float scale, int window, float soft_cap, "
      "Tensor? sinks, Tensor(a!)? counters, Tensor(b!) out) -> ()");
  m.def(
      "rotate_keys(Tensor(a!) k_cache, Tensor v_cache, Tensor(b!)? k_scale, Tensor? v_scale, Tensor blocks, "
      "Tensor rotary, Tensor? key_offset) -> ()");
  m.def(
      "gather_kv(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor(c!)? k_scale, Tensor(d!)? v_scale, Tensor source, "
      "Tensor indices, Tensor destination) -> ()");
  m.def(
      "attention_mass(Tensor q, Tensor k_cache, Tensor v_cache, Tensor? k_scale, Tensor? v_scale, "
      "Tensor block_tables, Tensor query_start, Tensor seq_lens, float scale, Tensor first, Tensor sources, "
      "Tensor rows, Tensor(a!) mass) -> ()");
  m.def(
      "latent_write(Tensor q, Tensor kv, Tensor norm, float norm_eps, Tensor positions, Tensor slots, Tensor rotary, "
      "bool interleaved, Tensor(a!) cache, Tensor(b!) out) -> ()");
  m.def(
      "latent_attention(Tensor q, Tensor cache, Tensor block_tables, Tensor query_start, Tensor seq_lens, float scale, "
      "Tensor(a!) out) -> ()");
  m.def("scale_logits(Tensor(a!) logits, float scale, float soft_cap) -> ()");
  m.def(
      "causal_conv(Tensor x, Tensor weight, Tensor(a!) state, Tensor query_start, Tensor source, Tensor destination, "
      "Tensor(b!) out) -> ()");
  m.def(
      "gated_delta_rule(Tensor qkv, Tensor a, Tensor b, Tensor rate, Tensor dt_bias, Tensor(a!) state, "
      "Tensor query_start, Tensor source, Tensor destination, Tensor(b!) out) -> ()");
  m.def("gated_rms_norm(Tensor x, Tensor gate, Tensor weight, float eps, Tensor(a!) out) -> ()");
  m.def(
      "adjust_logits(Tensor(a!) logits, Tensor repetition, Tensor presence, Tensor frequency, Tensor history, "
      "Tensor history_start, Tensor output_start, Tensor bias_ids, Tensor bias_values, Tensor bias_start) -> ()");
  m.def(
      "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seeds, "
      "Tensor positions, Tensor? masks, Tensor? mask_rows, Tensor(a!) out) -> ()");
  m.def(
      "token_logprobs(Tensor logits, Tensor tokens, Tensor(a!) logprob, Tensor(b!) rank, Tensor(c!) top_ids, "
      "Tensor(d!) top_logprobs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pybatch, CPU, m) {
  implement_ops<Cpu>(m);
  m.impl("latent_write", TORCH_BOX(&LatentOps<Cpu>::latent_write));
  m.impl("latent_attention", TORCH_BOX(&LatentOps<Cpu>::latent_attention));
}
