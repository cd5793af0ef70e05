#include "pybatch/isa.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

#ifdef PYBATCH_X86
#include <cpuid.h>
#endif
#ifdef PYBATCH_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(PYBATCH_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(PYBATCH_ARM)
#include <sys/auxv.h>
#endif

namespace pybatch {
namespace cpu {
namespace {

// All of an instruction set's own.
#define PYBATCH_ENTRY(name, Params) name,
#define PYBATCH_KERNELS_OF(isa)                         \
  [] {                                                  \
    using namespace isa;                                \
    return Kernels{PYBATCH_CPU_KERNELS(PYBATCH_ENTRY)}; \
  }()

#ifdef PYBATCH_X86

constexpr Kernels kAvx512 = PYBATCH_KERNELS_OF(avx512);
constexpr Kernels kAvx2 = PYBATCH_KERNELS_OF(avx2);
constexpr Kernels kAvx2Vnni = [] {
  Kernels kernels = kAvx2;
  kernels.matmul_w8a8 = avx2_vnni::matmul_w8a8;
  kernels.matmul_gguf = avx2_vnni::matmul_gguf;
  kernels.paged_attention = avx2_vnni::paged_attention;
  kernels.ceiling_loop = avx2_vnni::ceiling_loop;
  return kernels;
}();

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx2_vnni() {
  constexpr unsigned kAvxVnni = 1u << 4;  // CPUID.(7,1).EAX
  unsigned eax, ebx, ecx, edx;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvxVnni) != 0;
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#endif
#ifdef PYBATCH_AMX

constexpr Kernels kAmx = [] {
  Kernels kernels = kAvx512;
  kernels.matmul_dense = amx::matmul_dense;
  kernels.matmul_w8a8 = amx::matmul_w8a8;
  kernels.matmul_gguf = amx::matmul_gguf;
  kernels.paged_attention = amx::paged_attention;
  kernels.ceiling_loop = amx::ceiling_loop;
  return kernels;
}();

// Linux gives a process the registers of AMX when it asks (Documentation/arch/x86/xstate.rst); its threads and forked
// children have them too. It refuses where they would not fit a signal stack, and a sandbox or a system that knows
// nothing of them does.
bool may_use_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
}

bool has_amx() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // CPUID.(7,0).EDX
  constexpr unsigned kAvx512Bf16 = 1u << 5;                                          // CPUID.(7,1).EAX
  constexpr unsigned kTiles = kAmxBf16 | kAmxTile | kAmxInt8;
  unsigned eax, ebx, ecx, edx;
  return has_avx512() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (~edx & kTiles) == 0 &&
         __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvx512Bf16) != 0 && may_use_tiles();
}

#endif
#ifdef PYBATCH_ARM

constexpr Kernels kNeon = PYBATCH_KERNELS_OF(neon);
constexpr Kernels kNeonDotprod = [] {
  Kernels kernels = kNeon;
  kernels.matmul_w8a8 = neon_dotprod::matmul_w8a8;
  kernels.matmul_gguf = neon_dotprod::matmul_gguf;
  kernels.ceiling_loop = neon_dotprod::ceiling_loop;
  return kernels;
}();
constexpr Kernels kNeonI8mm = [] {
  Kernels kernels = kNeonDotprod;
  kernels.matmul_w8a8 = neon_i8mm::matmul_w8a8;
  kernels.ceiling_loop = neon_i8mm::ceiling_loop;
  return kernels;
}();

// The sets that kernels are compiled for begin at ARMv8.2, whose atomics the compiler may use.
#ifdef __APPLE__
bool has(const char* feature) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_LSE") && has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_dotprod() && has("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() {
  constexpr unsigned long kAtomics = 1 << 8, kDotprod = 1 << 20;  // HWCAP_ATOMICS, HWCAP_ASIMDDP
  return (~getauxval(AT_HWCAP) & (kAtomics | kDotprod)) == 0;
}
bool has_i8mm() {
  constexpr unsigned long kI8mm = 1 << 13;  // HWCAP2_I8MM
  return has_dotprod() && (getauxval(AT_HWCAP2) & kI8mm) != 0;
}
#endif

#endif

struct Isa {
  const char* name;
  bool (*possible)();
  Kernels kernels;
};

const Isa kIsas[] = {
#ifdef PYBATCH_AMX
    {"amx", has_amx, kAmx},
#endif
#ifdef PYBATCH_X86
    {"avx512", has_avx512, kAvx512},
    {"avx2_vnni", has_avx2_vnni, kAvx2Vnni},
    {"avx2", has_avx2, kAvx2},
#endif
#ifdef PYBATCH_ARM
    {"neon_i8mm", has_i8mm, kNeonI8mm},
    {"neon_dotprod", has_dotprod, kNeonDotprod},
    {"neon", [] { return true; }, kNeon},
#endif
    {"portable", [] { return true; }, PYBATCH_KERNELS_OF(portable)},
};

const Isa& choose() {
  const char* forced = std::getenv("PYBATCH_ISA");
  const bool any = forced == nullptr || *forced == '\0';
  for (const Isa& isa : kIsas) {
    if ((any || std::string(forced) == isa.name) && isa.possible()) return isa;
  }
  std::string possible;
  for (const Isa& isa : kIsas) {
    if (isa.possible()) possible += (possible.empty() ? "" : ", ") + std::string(isa.name);
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
