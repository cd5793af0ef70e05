#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void rope_kv_write(const RopeKvWriteParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
