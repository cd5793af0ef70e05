#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void matmul_w8a16(const MatmulParams&) {}
void matmul_w8a8(const MatmulParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
