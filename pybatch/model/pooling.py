"""How a model's hidden states become one vector, as sentence-transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLS, MAX, MEAN, MEAN_SQRT, WEIGHTED_MEAN, LAST = METHODS = (
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
)
"""sentence-transformers' names, in its order: the vectors of several methods follow one another in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingConfig:
    """methods: of METHODS, one or more. normalize: to a length of 1. prompts: texts by name that come in front of what
    is embedded; default_prompt: the name of that which comes where none is asked for. labels: the token ids for yes and
    no of a reranker that answers in words, where the checkpoint names them. stated: the checkpoint says all this, and
    it is not the default.
    """

    methods: tuple[str, ...] = (LAST,)
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    labels: tuple[int, int] | None = None
    stated: bool = False

    def prompt(self, name: str | None) -> str:
        """The text of a name. Raises ValueError for one that is not there."""
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(f"prompt_name: expected one of the model's prompts ({known}), got {name!r:.80}")
        return self.prompts[name]


LAST_TOKEN = PoolingConfig()
