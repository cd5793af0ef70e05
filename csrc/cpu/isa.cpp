#include "pybatch/isa.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace pybatch {
namespace cpu {
namespace {

struct Isa {
  const char* name;
  bool (*possible)();
  Kernels kernels;
};

const Isa kIsas[] = {
#ifdef PYBATCH_X86
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     },
#define PYBATCH_ENTRY_OF(name, Params) avx512::name,
     {PYBATCH_CPU_KERNELS(PYBATCH_ENTRY_OF)}},
#undef PYBATCH_ENTRY_OF
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); },
#define PYBATCH_ENTRY_OF(name, Params) avx2::name,
     {PYBATCH_CPU_KERNELS(PYBATCH_ENTRY_OF)}},
#undef PYBATCH_ENTRY_OF
#endif
    {"portable",
     [] { return true; },
#define PYBATCH_ENTRY_OF(name, Params) portable::name,
     {PYBATCH_CPU_KERNELS(PYBATCH_ENTRY_OF)}},
#undef PYBATCH_ENTRY_OF
};

const Isa& choose() {
  const char* forced = std::getenv("PYBATCH_ISA");
  std::string possible;
  for (const Isa& isa : kIsas) {
    if (!isa.possible()) continue;
    if (forced == nullptr || *forced == '\0' || std::string(forced) == isa.name) return isa;
    possible += (possible.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw std::invalid_argument("PYBATCH_ISA=" + std::string(forced) +
                              " is not possible here; possible on this processor: " + possible);
}

const Isa& chosen() {
  static const Isa& isa = choose();
  return isa;
}

}  // namespace

const Kernels& kernels() { return chosen().kernels; }

}  // namespace cpu

std::vector<std::string> possible_isas() {
  std::vector<std::string> names;
  for (const cpu::Isa& isa : cpu::kIsas) {
    if (isa.possible()) names.emplace_back(isa.name);
  }
  return names;
}

const std::string& chosen_isa() {
  static const std::string name = cpu::chosen().name;
  return name;
}

}  // namespace pybatch
