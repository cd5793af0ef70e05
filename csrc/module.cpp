// pybatch._C: what is no tensor op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "pybatch/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU capabilities.";
  m.attr("version") = PYBATCH_VERSION;
  m.attr("compiler") = __VERSION__;
  m.def("possible_isas", &pybatch::possible_isas,
        "Instruction sets compiled in that this processor can run, best first.");
  m.def("chosen_isa", &pybatch::chosen_isa,
        "The instruction set in use; raises ValueError if PYBATCH_ISA names an impossible one.");
}
