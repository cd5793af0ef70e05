"""What a request asks of the engine, whatever protocol it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pybatch.api.inputs import Prompt
from pybatch.api.pairs import Pair
from pybatch.engine.pooling_params import PoolingParams
from pybatch.engine.standing import ORDINARY, Standing


@dataclass(frozen=True, slots=True)
class Generation:
    """prompts: more than one where a request may hold several. params: fields of SamplingParams that it sets.
    standing: its priority is among interactive requests. constraint: what the request calls its structured_outputs.
    pooling: in place of params, of one that generates nothing. input: what the request calls its prompts.
    pairs: in place of prompts, of one for scores. stop: what the request calls its stop strings."""

    prompts: tuple[Prompt, ...]
    params: Mapping[str, Any]
    standing: Standing = ORDINARY
    constraint: str = "structured_outputs"
    pooling: PoolingParams | None = None
    input: str = "prompt"
    pairs: tuple[Pair, ...] = ()
    stop: str = "stop"
