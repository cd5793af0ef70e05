"""The engine: a scheduler over a paged KV cache that answers many requests at once."""

from pybatch.engine.config import EngineConfig
from pybatch.engine.engine import Engine
from pybatch.engine.outputs import CompletionOutput, Logprob, RequestOutput
from pybatch.engine.sampling_params import SamplingParams

__all__ = ["CompletionOutput", "Engine", "EngineConfig", "Logprob", "RequestOutput", "SamplingParams"]
