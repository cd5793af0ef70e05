"""How drafts are made; names follow vLLM's speculative_config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any, Literal, get_args

from pybatch.engine.arguments import suggest_names
from pybatch.engine.json_mapping import as_mapping

Method = Literal["ngram", "suffix", "draft_model"]

_LONGEST = 64  # drafts of a sequence in a step


@suggest_names
@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Settings of speculative decoding. A bad value raises ValueError, an unknown keyword TypeError.

    method: ngram: what followed the last place in prompt and output where the latest tokens stand (prompt lookup);
        suffix: what followed most often the longest end of them that came before (after SuffixDecoding, Oliaro et al.
        2024); draft_model: what a small model of the same vocabulary says. Default: draft_model where there is a model,
        else ngram.
    num_speculative_tokens: the most drafts of a sequence in a step.
    prompt_lookup_max, prompt_lookup_min: of ngram: the most and the fewest latest tokens that are looked for. Default:
        5 and 2; where one is given, the other is that too if it would be beyond it.
    model: the draft model, as the argument of LLM. quantization: of its weights, as the argument of LLM; default: the
        large model's, if it is not gguf.
    adaptive: take in each step as many drafts as are worth their time, by what steps were measured to take and how many
        drafts proved right: none where they do not pay. False: always as many as there are.
    """

    method: Method | None = None
    num_speculative_tokens: int = 8
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None
    model: str | None = None
    quantization: str | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        if self.method is None:
            object.__setattr__(self, "method", "ngram" if self.model is None else "draft_model")
        if self.method not in get_args(Method):
            self._fail("method", f"one of {', '.join(map(repr, get_args(Method)))}")
        if self.method == "draft_model" and not self.model:
            self._fail("model", "a draft model, since the method is 'draft_model'")
        if self.method != "draft_model" and self.model is not None:
            self._fail("model", f"None, since the method is {self.method!r}")
        self._expect_count("num_speculative_tokens", 1, _LONGEST)
        if self.method != "ngram":
            for name in ("prompt_lookup_max", "prompt_lookup_min"):
                if getattr(self, name) is not None:
                    self._fail(name, f"None, since the method is {self.method!r}")
        elif self.prompt_lookup_max is None:
            object.__setattr__(self, "prompt_lookup_max", max(5, self._given("prompt_lookup_min", 0)))
        if self.method == "ngram" and self.prompt_lookup_min is None:
            object.__setattr__(self, "prompt_lookup_min", min(2, self._given("prompt_lookup_max", 2)))
        if self.method == "ngram":
            self._expect_count("prompt_lookup_max", 1, 1024)
            self._expect_count("prompt_lookup_min", 1, int(self.prompt_lookup_max or 1))
        if not isinstance(self.adaptive, bool):
            self._fail("adaptive", "True or False")

    @classmethod
    def of(cls, given: SpeculativeConfig | Mapping[str, Any] | str) -> SpeculativeConfig:
        """From a dict, or one as JSON, as the command has it. Raises ValueError or TypeError."""
        if isinstance(given, cls):
            return given
        fields = as_mapping(given)
        if fields is None:
            raise ValueError(
                "speculative_config: expected a dict, or one as JSON, such as "
                f'{{"method": "ngram", "num_speculative_tokens": 8}}; got {given!r:.80}'
            )
        return cls(**fields)

    @property
    def text(self) -> str:
        """As JSON, without what is None."""
        return json.dumps({name: value for name, value in asdict(self).items() if value is not None})

    def _given(self, name: str, default: int) -> int:
        value = getattr(self, name)
        return value if isinstance(value, int) else default

    def _expect_count(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
            self._fail(name, f"an integer from {low} to {high}")
        object.__setattr__(self, name, int(value))

    def _fail(self, name: str, expected: str) -> None:
        raise ValueError(f"speculative_config: {name}: expected {expected}, got {getattr(self, name)!r:.80}")
