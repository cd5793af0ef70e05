// On which processors the threads of CPU kernels run.
#pragma once

#include <vector>

#include "pybatch/isa.h"

namespace pybatch {

// Binds each of the pool's threads, those that are there and those to come, to a processor: thread i, from 1 on, to
// processors[i % size]. The thread that calls kernels, which is number 0, is the program's own and is left alone. Does
// nothing where the system has no such call.
PYBATCH_EXPORT void bind_threads(std::vector<int> processors);

}  // namespace pybatch
