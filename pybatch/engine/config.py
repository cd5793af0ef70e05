"""The engine's settings; names follow vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pybatch.engine.arguments import suggest_names

KvCacheDType = Literal["auto", "int8", "fp8", "float32", "float16", "bfloat16"]
BatchingPolicy = Literal["continuous", "static", "dynamic", "micro"]

BLOCK_SIZES = (8, 16, 32, 64)


@suggest_names
@dataclass(kw_only=True)
class EngineConfig:
    """Settings of an Engine. A bad value raises ValueError, an unknown keyword TypeError.

    max_model_len: the most tokens of prompt and output together. None: the model's context, or what the KV pool holds
        if that is less.
    max_num_seqs: the most sequences in one step. max_num_batched_tokens: the most tokens in one step; a prompt longer
        than what is left goes over several steps. Where it is the smaller of the two, it bounds the sequences too.
    block_size: tokens in a KV block: 8, 16, 32 or 64.
    memory_utilization: the share of the memory free at the start that the KV pool may grow to; no more than
        max_num_seqs sequences of max_model_len could use. num_kv_blocks: the pool's size, given outright instead.
    kv_cache_dtype: "auto" is the activations' dtype, but float16 for float32 activations of a model with quantised
        weights; "int8", and on a GPU "fp8" (e4m3), keep one scale a token and head.
    enable_prefix_caching: keep full blocks for requests that begin with the same tokens.
    seed: of the draws of requests that have no seed of their own.
    policy: which sequences may join (policies.py).
    """

    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    memory_utilization: float = 0.5
    num_kv_blocks: int | None = None
    kv_cache_dtype: KvCacheDType = "auto"
    enable_prefix_caching: bool = True
    seed: int = 0
    policy: BatchingPolicy = "continuous"

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_kv_blocks"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if not 0 < self.memory_utilization <= 1:
            raise ValueError(f"memory_utilization: expected above 0 and at most 1, got {self.memory_utilization!r}")
        for name, choices in (
            ("block_size", BLOCK_SIZES),
            ("kv_cache_dtype", get_args(KvCacheDType)),
            ("policy", get_args(BatchingPolicy)),
        ):
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise ValueError(f"{name}: expected one of {expected}; got {getattr(self, name)!r}")
