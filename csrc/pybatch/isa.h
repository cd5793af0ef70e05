// Which instruction set the CPU kernels run on, decided once, when first asked.
#pragma once

#include <string>
#include <vector>

namespace pybatch {

#define PYBATCH_EXPORT __attribute__((visibility("default")))

// Best first, of those compiled in that this processor can run: on x86 "amx", "avx512", "avx2_vnni", "avx2",
// "portable", on ARM "neon_i8mm", "neon_dotprod", "neon", "portable". Asks the system for the use of AMX.
PYBATCH_EXPORT std::vector<std::string> possible_isas();

// The one in use: PYBATCH_ISA if set, else the best. Throws std::invalid_argument where PYBATCH_ISA names one that
// is not possible here.
PYBATCH_EXPORT const std::string& chosen_isa();

}  // namespace pybatch
