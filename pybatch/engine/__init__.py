"""The engine: a scheduler over a paged KV cache that answers many requests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybatch.lazy import lazy_names

if TYPE_CHECKING:
    from pybatch.engine.config import EngineConfig
    from pybatch.engine.engine import Engine
    from pybatch.engine.outputs import CompletionOutput, Logprob, RequestOutput
    from pybatch.engine.sampling_params import RequestOutputKind, SamplingParams

__all__ = [
    "CompletionOutput",
    "Engine",
    "EngineConfig",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
]

# Of these only Engine needs torch.
__getattr__, __dir__ = lazy_names(
    globals(),
    {
        "CompletionOutput": "pybatch.engine.outputs",
        "Engine": "pybatch.engine.engine",
        "EngineConfig": "pybatch.engine.config",
        "Logprob": "pybatch.engine.outputs",
        "RequestOutput": "pybatch.engine.outputs",
        "RequestOutputKind": "pybatch.engine.sampling_params",
        "SamplingParams": "pybatch.engine.sampling_params",
    },
)
