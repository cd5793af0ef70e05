#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void paged_attention(const PagedAttentionParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
