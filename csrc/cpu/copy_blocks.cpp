#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void copy_blocks(const CopyBlocksParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
