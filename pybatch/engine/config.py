"""The engine's settings; names follow vLLM."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pybatch.engine.arguments import expect_gib, list_fields, suggest_names
from pybatch.engine.errors import QueueFullError
from pybatch.engine.scheduling.policies import Policy, as_policy
from pybatch.engine.speculative_config import SpeculativeConfig
from pybatch.engine.user_weights import read_weights
from pybatch.machine.folders import of_home

KvCacheDType = Literal["auto", "int8", "int4", "fp8", "float32", "float16", "bfloat16"]

BLOCK_SIZES = (8, 16, 32, 64)

# A GPU has memory of its own, and its products of hundreds of rows take hardly longer than those of one.
DEFAULTS: dict[str, Mapping[str, Any]] = {
    "cpu": {"max_num_seqs": 64, "max_num_batched_tokens": 512, "memory_utilization": 0.5},
    "cuda": {"max_num_seqs": 256, "max_num_batched_tokens": 2048, "memory_utilization": 0.9},
}


@list_fields
@suggest_names
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of an Engine. A bad value raises ValueError, an unknown keyword TypeError.

    Those in DEFAULTS that are not given are None until `on` names a device; an engine's config has them all.
    """

    max_model_len: Annotated[
        int | None,
        "Tokens of prompt and output together. Default: the model's context, or what the KV pool holds if less.",
    ] = None
    max_num_seqs: Annotated[int, "The most sequences in one step. Default: 64, on a GPU 256."] = None  # type: ignore[assignment]
    max_num_batched_tokens: Annotated[
        int,
        "The most tokens in one step, and so the most sequences; a longer prompt takes several steps. Default: 512, on "
        "a GPU 2048.",
    ] = None  # type: ignore[assignment]
    max_queued: Annotated[
        int | None,
        "Requests that may wait while max_num_seqs run; more raise QueueFullError, in the server 503, until some have "
        "ended. Default: any number; in the server 4096.",
    ] = None
    user_weights: Annotated[
        Mapping[str, float] | str | None,
        "The shares of users who ask all the time, in proportion, as a dict or JSON; a user who is not named has 1. "
        "The server's API keys are users by their names.",
    ] = None
    max_background_tokens: Annotated[
        int, "The most prompt tokens in one step for rows of batches that run beside interactive requests."
    ] = 256
    block_size: Annotated[int, "Tokens in a KV block: 8, 16, 32 or 64."] = 16
    memory_utilization: Annotated[
        float, "Share of the memory free at the start that the KV pool may grow to. Default: 0.5, on a GPU 0.9."
    ] = None  # type: ignore[assignment]
    num_kv_blocks: Annotated[int | None, "The KV pool's size in blocks, in place of memory_utilization."] = None
    kv_cache_dtype: Annotated[
        KvCacheDType,
        "float32, bfloat16 or float16; int8 or, on a GPU, fp8 (e4m3) with a scale a token and head, which hold 1.9 "
        "times the tokens of float16; int4 with a scale for every 32 elements of a head, 3.5 times; auto: the "
        "activations' type, but float16 for float32 activations of a quantised model.",
    ] = "auto"
    enable_prefix_caching: Annotated[bool, "Prompts that begin alike share the KV blocks of their beginning."] = True
    prefix_cache_dir: Annotated[
        str | Path | None,
        "A folder for the KV blocks of prefixes that several prompts have, or that are pinned: a later run finds them "
        "there. Prompts can be read from it.",
    ] = None
    prefix_cache_space: Annotated[
        float, "The most GiB in prefix_cache_dir; what has not been used for longest is deleted."
    ] = 10.0
    predict_lengths: Annotated[
        bool,
        "Let requests join only if the KV pool is expected to hold all that run until they end, by the lengths of "
        "outputs that have ended; else as soon as there is room, and preempt more.",
    ] = True
    swap_space: Annotated[
        float,
        "GiB of the host's memory for KV blocks of preempted requests, which are moved there where that takes less "
        "time than to compute them again.",
    ] = 0.0
    seed: Annotated[int | None, "Of the draws of requests that have no seed of their own; None is 0."] = 0
    policy: Annotated[
        str | Policy,
        "Who may join a batch, and when: continuous, static(batch_size=, by_length=), dynamic(max_batch=, max_wait=) "
        "or micro(micro_batch=).",
    ] = "continuous"
    speculative_config: Annotated[
        SpeculativeConfig | Mapping[str, Any] | str | None,
        "Speculative decoding, which changes no output: a dict, or JSON, with method (ngram, suffix or draft_model), "
        "num_speculative_tokens and what SpeculativeConfig has besides.",
    ] = None
    structured_outputs_timeout: Annotated[
        float, "The most seconds that a request's schema, regular expression or grammar may take to compile."
    ] = 10.0

    def __post_init__(self) -> None:
        if self.speculative_config is not None:
            object.__setattr__(self, "speculative_config", SpeculativeConfig.of(self.speculative_config).text)
        if self.user_weights is not None:
            object.__setattr__(self, "user_weights", json.dumps(read_weights(self.user_weights)))
        optional = ("max_model_len", "num_kv_blocks", "max_num_seqs", "max_num_batched_tokens")
        for name in ("max_background_tokens", *optional):
            if getattr(self, name) is not None or name not in optional:
                self._expect_integer(name, 1, 2**31 - 1, "a positive integer below 2**31")
        if self.max_queued is not None:
            self._expect_integer("max_queued", 0, 2**31 - 1, "an integer from 0 to 2**31 or None")
        self._expect_integer("block_size", 1, max(BLOCK_SIZES), f"one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.seed is not None:
            self._expect_integer("seed", -(2**63), 2**64 - 1, "an integer of 64 bits or None")
        share = 1 if self.memory_utilization is None else self.memory_utilization
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(f"memory_utilization: expected a number above 0 and at most 1, got {share!r}")
        for name in ("swap_space", "prefix_cache_space"):
            expect_gib(name, getattr(self, name))
        for name in ("enable_prefix_caching", "predict_lengths"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        if self.prefix_cache_dir is not None:
            if not isinstance(self.prefix_cache_dir, str | Path) or not str(self.prefix_cache_dir):
                raise ValueError(f"prefix_cache_dir: expected a folder's path, got {self.prefix_cache_dir!r}")
            if not self.enable_prefix_caching:
                raise ValueError("prefix_cache_dir: expected None where enable_prefix_caching is off")
            object.__setattr__(self, "prefix_cache_dir", str(of_home(self.prefix_cache_dir)))  # text, as policy is
        seconds = self.structured_outputs_timeout
        if not isinstance(seconds, Real) or isinstance(seconds, bool) or not 0 < seconds <= 3600:
            raise ValueError(f"structured_outputs_timeout: expected seconds, above 0 and at most 3600, got {seconds!r}")
        for name, choices in (
            ("block_size", BLOCK_SIZES),
            ("kv_cache_dtype", get_args(KvCacheDType)),
        ):
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise ValueError(f"{name}: expected one of {expected}; got {getattr(self, name)!r}")
        policy = as_policy(self.policy)
        most = self.max_num_seqs or max(each["max_num_seqs"] for each in DEFAULTS.values())
        if policy.size is not None and policy.size > most:
            raise ValueError(f"policy: expected at most max_num_seqs = {most} requests a batch, got {policy}")
        object.__setattr__(self, "policy", str(policy))  # as text it goes into reports as it is

    def on(self, device: str) -> Self:
        """With the defaults of that type of device for what was not given."""
        missing = {name: value for name, value in DEFAULTS[device].items() if getattr(self, name) is None}
        return replace(self, **missing) if missing else self

    @property
    def batching(self) -> Policy:
        """The policy, of which `policy` is the text."""
        return as_policy(self.policy)

    @property
    def requests_ahead(self) -> int:
        """How many requests to have in the engine at a time, so that the policy has some to choose from."""
        return int(min(self.batching.batches_ahead * self.max_num_seqs, self.most_requests))

    @property
    def most_requests(self) -> float:
        """How many unfinished requests there may be."""
        return math.inf if self.max_queued is None else self.max_num_seqs + self.max_queued

    def expect_place(self, unfinished: int, more: int = 1) -> None:
        """Raises QueueFullError unless there may be more requests beside so many unfinished ones."""
        if unfinished + more > self.most_requests:
            raise QueueFullError(self.max_num_seqs, int(self.max_queued or 0))

    @property
    def speculation(self) -> SpeculativeConfig | None:
        """speculative_config, which is its text."""
        return None if self.speculative_config is None else SpeculativeConfig.of(self.speculative_config)

    @property
    def weights(self) -> dict[str, float]:
        """user_weights, which is its text."""
        return {} if self.user_weights is None else read_weights(self.user_weights)

    def _expect_integer(self, name: str, low: int, high: int, expected: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
            raise ValueError(f"{name}: expected {expected}, got {value!r}")
        object.__setattr__(self, name, int(value))  # numpy's too
