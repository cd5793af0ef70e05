// Checks the kernels of the instruction set that PYBATCH_ISA names: against float64 (without an argument; what has the
// bits of a set that was needs no other reference), a row alone against the same row in a batch, one thread against
// three. Prints the sets that are possible and the one in use, a digest of the bits of every case's result, and what
// failed.
#include <exception>

#include "check.h"
#include "pybatch/isa.h"

int main(int argc, char**) {
  using namespace check;
  against_float64 = argc == 1;
  try {
    for (const std::string& isa : possible_isas()) std::printf("possible %s\n", isa.c_str());
    std::printf("set %s\n", chosen_isa().c_str());
    set_num_threads_source([] { return threads; });
    check_rows_kernels();
    check_matmuls();
    check_kv_cache();
    check_attention();
    check_linear_attention();
    check_low_rank();
    check_sampling();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  std::printf("failures %d\n", failures);
  return failures == 0 ? 0 : 1;
}
