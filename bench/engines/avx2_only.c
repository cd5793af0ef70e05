/* Holds a process to AVX2 whatever the processor has: with this library preloaded, CPUID shows no AVX-512, AMX,
 * AVX-VNNI or AVX10, to libraries that ask for their own part (oneDNN, MKL, xbyak, cpuinfo, libgcc) and to those that
 * obey an environment variable of theirs alike. Code compiled for AVX-512 without asking fails or is not affected.
 *
 *     cc -O2 -shared -fPIC -o avx2_only.so avx2_only.c; LD_PRELOAD=./avx2_only.so COMMAND
 *
 * By CPUID faulting (arch_prctl(2), ARCH_SET_CPUID): Intel since Ivy Bridge, where the kernel and the hypervisor offer
 * it (cpuid_fault in /proc/cpuinfo). Bits as in Intel's Software Developer's Manual, volume 2A, CPUID. glibc has chosen
 * its string functions before: GLIBC_TUNABLES holds those. /proc/PID/arch_status tells whether AVX-512 was used. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { CPUID_FAULTS, CPUID_WORKS };

static long set_cpuid(int mode) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, mode); }

static unsigned bits(int count, const int* at) {
  unsigned mask = 0;
  while (count--) mask |= 1u << at[count];
  return mask;
}
#define BITS(...) bits(sizeof((int[]){__VA_ARGS__}) / sizeof(int), (int[]){__VA_ARGS__})

static void hide(unsigned leaf, unsigned subleaf, unsigned r[4]) {
  if (leaf == 7 && subleaf == 0) {
    r[1] &= ~BITS(16, 17, 21, 26, 27, 28, 30, 31); /* EBX: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL */
    r[2] &= ~BITS(1, 6, 11, 12, 14);               /* ECX: AVX-512 VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    r[3] &= ~BITS(2, 3, 8, 22, 23, 24, 25); /* EDX: 4VNNIW, 4FMAPS, VP2INTERSECT, AMX-BF16, FP16, AMX, AMX-INT8 */
  } else if (leaf == 7 && subleaf == 1) {
    r[0] &= ~BITS(4, 5, 21, 23);    /* EAX: AVX-VNNI, AVX-512 BF16, AMX-FP16, AVX-IFMA */
    r[3] &= ~BITS(4, 5, 8, 10, 19); /* EDX: AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
  }
}

static void on_fault(int number, siginfo_t* info, void* context) {
  greg_t* at = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char cpuid[] = {0x0f, 0xa2};
  if (info->si_code != SI_KERNEL || memcmp((void*)at[REG_RIP], cpuid, sizeof cpuid) != 0) {
    signal(number, SIG_DFL); /* a fault of the program's own: it happens again on return */
    return;
  }
  unsigned leaf = at[REG_RAX], subleaf = at[REG_RCX], r[4];
  set_cpuid(CPUID_WORKS);
  __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
  set_cpuid(CPUID_FAULTS);
  hide(leaf, subleaf, r);
  at[REG_RAX] = r[0], at[REG_RBX] = r[1], at[REG_RCX] = r[2], at[REG_RDX] = r[3];
  at[REG_RIP] += sizeof cpuid;
}

__attribute__((constructor)) static void start(void) {
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, NULL);
  if (set_cpuid(CPUID_FAULTS) != 0) {
    fputs("avx2_only: this kernel or processor cannot fault on CPUID\n", stderr);
    _exit(1);
  }
}
