#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void silu_mul(const GatedActivationParams&) {}
void gelu_tanh_mul(const GatedActivationParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
