// pybatch._C: everything that is not a tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "pybatch/binding.h"
#include "pybatch/ceilings.h"
#include "pybatch/graph.h"
#include "pybatch/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU capabilities.";
  m.attr("version") = PYBATCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.attr("why_no_cuda") = PYBATCH_NO_CUDA;  // empty: libpybatch_cuda is built
  m.def("possible_isas", &pybatch::possible_isas,
        "Instruction sets compiled in that this processor can run, best first.");
  m.def("chosen_isa", &pybatch::chosen_isa,
        "The instruction set in use; raises ValueError if PYBATCH_ISA names an impossible one.");
  m.def("bind_threads", &pybatch::bind_threads, pybind11::arg("processors"),
        "Binds the kernels' threads, but not those that call kernels, to these processors, one each.");
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
