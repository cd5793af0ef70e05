#include "cpu/kernels.h"
#include "cpu/vec.h"
namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE {
void adjust_logits(const AdjustLogitsParams&) {}
void sample(const SampleParams&) {}
void token_logprobs(const TokenLogprobsParams&) {}
}  // namespace pybatch::cpu::PYBATCH_ISA_NAMESPACE
