"""llama-cpp-python's server (version 0.3.36), which crashes at its first token with the buffers that it has for AMX: on
a processor that has AMX, weights stay as the file has them. Run by bench/serving.py, with the server's own arguments.
"""

from __future__ import annotations

from pathlib import Path

import llama_cpp.llama_cpp as api
from llama_cpp.server.__main__ import main

default_params = api.llama_model_default_params


def without_extra_buffers() -> api.llama_model_params:
    params = default_params()
    params.use_extra_bufts = False
    return params


if "amx_int8" in Path("/proc/cpuinfo").read_text():
    api.llama_model_default_params = without_extra_buffers
main()
