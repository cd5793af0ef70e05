"""Run language models over many prompts at once.

>>> import pybatch
>>> outputs = pybatch.generate(["The capital of France is"], model="smollm2-135m", temperature=0, max_tokens=8)
>>> outputs[0].outputs[0].text
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybatch.lazy import lazy_names

if TYPE_CHECKING:
    from pybatch.api.alerts import Alert, AlertLimits
    from pybatch.api.async_llm import AsyncLLM, AsyncLLMEngine
    from pybatch.api.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
    from pybatch.api.embedding import EmbeddingRequestOutput, ScoringRequestOutput
    from pybatch.api.engine_args import AsyncEngineArgs, EngineArgs
    from pybatch.api.inputs import TextPrompt, TokensPrompt
    from pybatch.api.llm import LLM, generate
    from pybatch.api.metrics import Metrics
    from pybatch.bulk import JobError, run_job
    from pybatch.engine import CompletionOutput, RequestOutput, RequestOutputKind, SamplingParams
    from pybatch.engine.errors import QueueFullError
    from pybatch.engine.kv_policies import HeavyHitters, SnapKV, StreamingLLM
    from pybatch.engine.lora_request import LoRARequest
    from pybatch.engine.pooling_params import PoolingParams
    from pybatch.engine.scheduling.policies import Continuous, Dynamic, Micro, Static
    from pybatch.engine.structured.params import StructuredOutputsParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Alert",
    "AlertLimits",
    "AsyncEngineArgs",
    "AsyncLLM",
    "AsyncLLMEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "Continuous",
    "Dynamic",
    "EmbeddingRequestOutput",
    "EngineArgs",
    "HeavyHitters",
    "JobError",
    "LoRARequest",
    "Metrics",
    "Micro",
    "PoolingParams",
    "QueueFullError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "SnapKV",
    "Static",
    "StreamingLLM",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
    "generate",
    "run_job",
]

# torch takes seconds to import, and `pybatch --help` needs none of it.
__getattr__, __dir__ = lazy_names(
    globals(),
    {
        "Alert": "pybatch.api.alerts",
        "AlertLimits": "pybatch.api.alerts",
        "AsyncEngineArgs": "pybatch.api.engine_args",
        "AsyncLLM": "pybatch.api.async_llm",
        "AsyncLLMEngine": "pybatch.api.async_llm",
        "BeamSearchOutput": "pybatch.api.beam_search",
        "BeamSearchParams": "pybatch.api.beam_search",
        "BeamSearchSequence": "pybatch.api.beam_search",
        "CompletionOutput": "pybatch.engine.outputs",
        "Continuous": "pybatch.engine.scheduling.policies",
        "Dynamic": "pybatch.engine.scheduling.policies",
        "EmbeddingRequestOutput": "pybatch.api.embedding",
        "EngineArgs": "pybatch.api.engine_args",
        "HeavyHitters": "pybatch.engine.kv_policies",
        "JobError": "pybatch.bulk",
        "LLM": "pybatch.api.llm",
        "LoRARequest": "pybatch.engine.lora_request",
        "Metrics": "pybatch.api.metrics",
        "Micro": "pybatch.engine.scheduling.policies",
        "PoolingParams": "pybatch.engine.pooling_params",
        "QueueFullError": "pybatch.engine.errors",
        "RequestOutput": "pybatch.engine.outputs",
        "RequestOutputKind": "pybatch.engine.sampling_params",
        "SamplingParams": "pybatch.engine.sampling_params",
        "ScoringRequestOutput": "pybatch.api.embedding",
        "SnapKV": "pybatch.engine.kv_policies",
        "Static": "pybatch.engine.scheduling.policies",
        "StreamingLLM": "pybatch.engine.kv_policies",
        "StructuredOutputsParams": "pybatch.engine.structured.params",
        "TextPrompt": "pybatch.api.inputs",
        "TokensPrompt": "pybatch.api.inputs",
        "generate": "pybatch.api.llm",
        "run_job": "pybatch.bulk",
    },
)
