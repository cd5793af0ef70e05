"""ik_llama.cpp, a fork of llama.cpp with matmuls of its own, through ik-llama-cpp-python's C API.

The precision is the model file's own; --model names the GGUF file. The package's wheel is compiled for AVX2; libggml
built with GGML_NATIVE=ON in its place uses what the processor has.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from typing import Any

from ik_llama_cpp import _ctypes_api
from llama_batches import BatchedEngine


class Engine(BatchedEngine):
    api = _ctypes_api

    def __init__(self, model: str, precision: str, threads: int) -> None:
        library = _ctypes_api._lib
        self.silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        library.llama_log_set(self.silence, None)
        super().__init__(model, threads)
        self.version = version("ik-llama-cpp-python")
        library.llama_print_system_info.restype = ctypes.c_char_p
        self.uses = library.llama_print_system_info().decode()

    def model_params(self) -> Any:
        params = super().model_params()
        params.repack_tensors = True  # interleaves rows while it loads, which its matmuls run fastest on
        return params

    def context_params(self, sequences: int) -> Any:
        params = super().context_params(sequences)
        params.flash_attn = sequences == 1  # with several in a batch it stops at its assertion S > 0 (0.1.5)
        return params

    def clear(self) -> None:
        _ctypes_api.llama_kv_cache_clear(self.context)
