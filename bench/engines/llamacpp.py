"""llama.cpp through llama-cpp-python's C API. The precision is the model file's own; --model names the GGUF file."""

from __future__ import annotations

import llama_cpp
from llama_batches import BatchedEngine


class Engine(BatchedEngine):
    api = llama_cpp

    def __init__(self, model: str, precision: str, threads: int) -> None:
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, None)
        super().__init__(model, threads)
        self.version = llama_cpp.__version__
        self.uses = llama_cpp.llama_print_system_info().decode()

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
