"""Which tokens a request keeps in its KV cache: all of them, or fewer by one of these methods."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral
from typing import Any, Literal

from pybatch.engine.arguments import expect_known


@dataclass(frozen=True, slots=True)
class StreamingLLM:
    """Attention sinks and a window of the latest tokens (StreamingLLM, Xiao et al. 2023).

    sinks: of the first tokens, kept for good, rounded up to whole blocks. window: a token sees at least so many of the
    latest tokens, itself included, and at most a block's more, since whole blocks are dropped.

    The prompt is computed with full attention; what the window leaves is dropped at its end, and then whenever another
    block has fallen out. Positions are those in the cache, as in the paper: RoPE makes attention depend on distances
    alone, so tokens of the window keep their keys, and the sinks' are turned, from the keys that they had at first, by
    the number of dropped tokens. The request's length is still bounded by max_model_len.
    """

    sinks: int = 4
    window: int = 1024
    type: Literal["streaming_llm"] = field(default="streaming_llm", init=False, repr=False)

    def __post_init__(self) -> None:
        _expect_counts(self, sinks=0, window=1)


@dataclass(frozen=True, slots=True)
class SnapKV:
    """The prompt's tokens that its end attends to (SnapKV, Li et al. 2024).

    observed: the prompt's last tokens, which are kept; the attention that they have for each token before them is
    summed, over the query heads of a KV head, and averaged over `pooling` neighbours (an odd number), so that what lies
    beside a token of weight stays with it (the authors' code has 5, and loses the ends of longer answers). budget: for
    each layer and KV head so many of the tokens with the most are kept besides. The prompt is computed with full
    attention and compressed at its end, once, if it is longer than that; the output is kept whole. Keys keep the
    positions that they had.
    """

    budget: int = 1024
    observed: int = 32
    pooling: int = 15
    type: Literal["snapkv"] = field(default="snapkv", init=False, repr=False)

    def __post_init__(self) -> None:
        _expect_counts(self, budget=1, observed=1, pooling=1)
        if self.pooling % 2 == 0:
            raise ValueError(f"SnapKV: pooling: expected an odd number, got {self.pooling}")


@dataclass(frozen=True, slots=True)
class HeavyHitters:
    """The tokens that have had the most attention, and the latest ones (H2O, Zhang et al. 2023).

    heavy, recent: for each layer and KV head, the tokens with the largest sums of the attention that all queries so
    far, the prompt's too, have had for them (over the query heads of a KV head), and the latest tokens. The prompt is
    computed with full attention; then, and whenever a block's worth of tokens has come on top, all but these are
    evicted. The paper evicts at every token: here a token sees up to a block's more. Keys keep the positions that they
    had. Every step of such a request sums attention, and so it runs op by op, with all that are in the batch, and
    without drafts; nothing of the prompt is taken from the prefix cache, since all its queries count.
    """

    heavy: int = 512
    recent: int = 512
    type: Literal["heavy_hitters"] = field(default="heavy_hitters", init=False, repr=False)

    def __post_init__(self) -> None:
        _expect_counts(self, heavy=1, recent=1)


KvPolicy = StreamingLLM | SnapKV | HeavyHitters
POLICIES: dict[str, type[KvPolicy]] = {"streaming_llm": StreamingLLM, "snapkv": SnapKV, "heavy_hitters": HeavyHitters}
"""By their type, as JSON has it."""


def kv_policy(value: Any) -> KvPolicy | None:
    """The policy that a value stands for: one of those above, None, or an object as JSON has it, such as
    {"type": "streaming_llm", "window": 512}. Raises ValueError for any other."""
    if value is None or isinstance(value, KvPolicy):
        return value
    names = ", ".join(map(repr, POLICIES))
    if not isinstance(value, Mapping):
        raise ValueError(
            f"kv_policy: expected None, an object with a type of {names}, or its class, got {_short(value)}"
        )
    given = dict(value)
    name = given.pop("type", None)
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"kv_policy: expected a type of {names}, got {_short(name)}")
    policy = POLICIES[name]
    try:
        expect_known(name, given, [field.name for field in fields(policy) if field.init])
        return policy(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"kv_policy: {error}") from None


def as_json(value: Any) -> dict[str, Any] | None:
    """The one object that stands for a value that kv_policy takes."""
    policy = kv_policy(value)
    return None if policy is None else asdict(policy)


def _expect_counts(policy: Any, **least: int) -> None:
    for name, low in least.items():
        value = getattr(policy, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) < 2**31:
            expected = f"an integer of at least {low} and below 2**31"
            raise ValueError(f"{type(policy).__name__}: {name}: expected {expected}, got {_short(value)}")
        object.__setattr__(policy, name, int(value))  # numpy's too


def _short(value: Any) -> str:
    return reprlib.repr(value)
