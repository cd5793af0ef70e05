#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void matmul_dense(const MatmulParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
