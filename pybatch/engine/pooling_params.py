"""How one prompt becomes a vector or a score; names follow vLLM's PoolingParams."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Literal, get_args

from pybatch.engine.arguments import suggest_names
from pybatch.engine.sampling_params import SamplingParams
from pybatch.model.pooling import LAST

PoolingTask = Literal["embed", "score"]


@suggest_names
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """Of one request that generates nothing. A bad value raises ValueError, an unknown keyword TypeError.

    task: "embed", or "score" by the model's head, or by its words for yes and no.
    dimensions: keep only so many first ones, for models trained so that these count most (Matryoshka, Kusupati et al.
        2022). normalize: to a length of 1, after that; None: as the model's files have it.
    truncate_prompt_tokens: keep only so many of the prompt's first tokens, and the end-of-sequence token behind them if
        there is one; -1: as many as the context holds.
    """

    task: PoolingTask = "embed"
    dimensions: int | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: int | None = None

    # What SamplingParams would say of it.
    max_tokens: ClassVar[int] = 0
    num_sequences: ClassVar[int] = 1
    use_beam_search: ClassVar[bool] = False
    kv_policy: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.task not in get_args(PoolingTask):
            raise ValueError(f"task: expected one of {', '.join(get_args(PoolingTask))}, got {self.task!r:.80}")
        if self.normalize is not None and not isinstance(self.normalize, bool):
            raise ValueError(f"normalize: expected True, False or None, got {self.normalize!r:.80}")
        if self.dimensions is not None:
            self._expect_count("dimensions")
        if self.truncate_prompt_tokens not in (None, -1):
            self._expect_count("truncate_prompt_tokens")

    def _expect_count(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r:.80}")


Params = SamplingParams | PoolingParams
"""Of a request, by what it asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """PoolingParams as the engine runs them. methods: of pooling.METHODS. scores: it ends in a score."""

    methods: tuple[str, ...]
    normalize: bool
    dimensions: int | None = None
    scores: bool = False

    @property
    def of_all_tokens(self) -> bool:
        """Whether the states of all tokens are needed, and not only that of the last."""
        return self.methods != (LAST,)
