// pybatch._C: what is no tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "pybatch/ceilings.h"
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
  m.def(
      "measure_ceilings",
      [] {
        pybatch::Ceilings c = pybatch::measure_ceilings();
        return std::map<std::string, double>{{"fp32_flops", c.fp32_flops},
                                             {"int8_ops", c.int8_ops},
                                             {"read_bytes", c.read_bytes},
                                             {"copy_bytes", c.copy_bytes}};
      },
      "What this processor does at most per second, on torch's threads, in the instruction set in use: fp32_flops, "
      "int8_ops, read_bytes and copy_bytes (read and written, in memory). Takes about two seconds and 512 MiB.");
}
