#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void embedding(const EmbeddingParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
