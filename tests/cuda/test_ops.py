"""The suites of tests/ops on a GPU: the same tests, with every tensor of a call taken there and back."""

from __future__ import annotations

import backends
import pytest
from on_cuda import OnCuda

from pybatch import ops

if not ops.CUDA:
    pytest.skip("needs a GPU, and pybatch built with CUDA", allow_module_level=True)

globals().update(backends.kernel_tests(OnCuda()))
