"""What a request asks of the engine, whatever protocol it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pybatch.api.inputs import Prompt
from pybatch.api.pairs import Pair
from pybatch.engine.pooling_params import PoolingParams
from pybatch.engine.standing import ORDINARY, Standing


@dataclass(frozen=True, slots=True)
class Generation:
    """prompts: more than one where a request may hold several. params: fields of SamplingParams that it sets.
    standing: its priority is among interactive requests. names: what the request calls its prompt and the fields of
    SamplingParams, where it has other names for them. pooling: in place of params, of one that generates nothing.
    pairs: in place of prompts, of one for scores."""

    prompts: tuple[Prompt, ...]
    params: Mapping[str, Any]
    standing: Standing = ORDINARY
    names: Mapping[str, str] = field(default_factory=dict)
    pooling: PoolingParams | None = None
    pairs: tuple[Pair, ...] = ()
