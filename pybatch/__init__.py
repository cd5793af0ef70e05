"""Run language models over many prompts at once.

>>> import pybatch
>>> outputs = pybatch.generate(["The capital of France is"], model="smollm2-135m", temperature=0, max_tokens=8)
>>> outputs[0].outputs[0].text
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybatch.api.async_llm import AsyncLLM
    from pybatch.api.llm import LLM, generate
    from pybatch.engine import CompletionOutput, RequestOutput, SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "CompletionOutput", "RequestOutput", "SamplingParams", "__version__", "generate"]

# Loaded when first used: torch takes seconds, and `pybatch --help` needs none of it.
_HOMES = {
    "AsyncLLM": "pybatch.api.async_llm",
    "CompletionOutput": "pybatch.engine",
    "LLM": "pybatch.api.llm",
    "RequestOutput": "pybatch.engine",
    "SamplingParams": "pybatch.engine",
    "generate": "pybatch.api.llm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pybatch' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
