// pybatch._C: everything that is not a tensor op.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#if defined(__linux__)
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "pybatch/binding.h"
#include "pybatch/ceilings.h"
#include "pybatch/graph.h"
#include "pybatch/isa.h"

namespace pybatch {

// The CUDA runtime is linked statically: it runs on drivers of its major version and later ones.
std::string why_no_cuda() {
  constexpr std::string_view kReason = PYBATCH_NO_CUDA, kBuilt = PYBATCH_CUDA_VERSION;
  if (!kReason.empty()) return "this pybatch was built without CUDA kernels: " + std::string(kReason);
  const std::string needed(kBuilt.substr(0, kBuilt.find('.')));
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  auto* get_version =
      driver == nullptr ? nullptr : reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDriverGetVersion"));
  int version = 0;  // of 12.4: 12040
  if (get_version == nullptr || get_version(&version) != 0) return "there is no NVIDIA driver (libcuda.so.1)";
  if (version / 1000 >= std::stoi(needed)) return "";
  return "the NVIDIA driver is too old: it is one for CUDA " + std::to_string(version / 1000) + "." +
         std::to_string(version % 1000 / 10) + ", and pybatch's kernels need one for CUDA " + needed + " or later";
}

// Has pages of whole pages of memory, once they are written to, come from these nodes in turn.
void interleave_memory(uintptr_t address, size_t bytes, const std::vector<int>& nodes) {
#if defined(__linux__)
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> mask(1);
  for (int node : nodes) {
    const size_t word = static_cast<size_t>(node) / kBits;
    if (mask.size() <= word) mask.resize(word + 1);
    mask[word] |= 1ul << static_cast<size_t>(node) % kBits;
  }
  const size_t bits = kBits * mask.size() + 1;  // the system takes one off
  if (syscall(SYS_mbind, address, bytes, MPOL_INTERLEAVE, mask.data(), bits, 0) == 0) return;
  throw std::system_error(errno, std::generic_category(), "mbind");
#else
  (void)address, (void)bytes, (void)nodes;
  throw std::runtime_error("this system has no mbind");
#endif
}

}  // namespace pybatch

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU capabilities.";
  m.attr("version") = PYBATCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("why_no_cuda", &pybatch::why_no_cuda,
        "Why libpybatch_cuda cannot be used: it is not built, or the driver is too old for it; else empty.");
  m.def("possible_isas", &pybatch::possible_isas,
        "Instruction sets compiled in that this processor can run, best first.");
  m.def("chosen_isa", &pybatch::chosen_isa,
        "The instruction set in use; raises ValueError if PYBATCH_ISA names an impossible one.");
  m.def("bind_threads", &pybatch::bind_threads, pybind11::arg("processors"),
        "Binds the kernels' threads, but not those that call kernels, to these processors, one each.");
  m.def("interleave_memory", &pybatch::interleave_memory, pybind11::arg("address"), pybind11::arg("bytes"),
        pybind11::arg("nodes"),
        "Has memory that begins with a page come from these nodes in turn as it is written to; raises RuntimeError"
        " where the system refuses.");
  pybind11::class_<pybatch::Graph>(
      m, "Graph",
      "CPU ops called inside `with graph:` are recorded instead of run; replay() runs them."
      " The graph keeps their tensors' storages alive. replay() raises RuntimeError, and"
      " runs nothing, where a storage has been resized since or holds an illegal value,"
      " such as an id outside the vocabulary. An exception inside `with` clears the graph.")
      .def(pybind11::init())
      .def("__enter__", &pybatch::Graph::begin)
      .def("__exit__",
           [](pybatch::Graph& graph, const pybind11::object& exception, const pybind11::args&) {
             graph.end();
             if (!exception.is_none()) graph.clear();
           })
      .def("timed_replay", &pybatch::Graph::timed_replay, pybind11::call_guard<pybind11::gil_scoped_release>(),
           "As replay(), but returns the seconds spent in each kernel, by name.")
      .def("replay", &pybatch::Graph::replay, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def(
      "measure_ceiling",
      [](const std::string& name, double seconds) {
        static const std::map<std::string, pybatch::Ceiling> known = {{"fp32_flops", pybatch::Ceiling::fp32_flops},
                                                                      {"int8_ops", pybatch::Ceiling::int8_ops},
                                                                      {"read_bytes", pybatch::Ceiling::read_bytes},
                                                                      {"copy_bytes", pybatch::Ceiling::copy_bytes}};
        const auto found = known.find(name);
        if (found == known.end()) {
          throw std::invalid_argument("name: expected fp32_flops, int8_ops, read_bytes or copy_bytes, got " + name);
        }
        if (!(seconds >= 0 && seconds <= 3600)) {
          throw std::invalid_argument("seconds: expected from 0 to 3600, got " + std::to_string(seconds));
        }
        return pybatch::measure_ceiling(found->second, seconds);
      },
      pybind11::arg("name"), pybind11::arg("seconds"),
      "What this processor does at most per second, on the kernels' threads, in the instruction set in use: "
      "fp32_flops, int8_ops, read_bytes or copy_bytes (read and written, in memory). Keeps 512 MiB for the next call.");
}
