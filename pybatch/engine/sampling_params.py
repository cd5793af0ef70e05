"""How one request is sampled and when it stops; field names and defaults follow vLLM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from pybatch.engine.arguments import suggest_names

GREEDY_TEMPERATURE = 1e-5  # below this, sampling is greedy


@suggest_names
@dataclass(kw_only=True)
class SamplingParams:
    """Sampling parameters of one request. A bad value raises ValueError, an unknown keyword TypeError.

    n: samples a prompt. Sample i draws as a request of its own with seed + i would.
    temperature: 0 is greedy. top_p in (0, 1]; top_k: 0 or -1 for all; min_p in [0, 1], a share of the largest
        probability.
    presence_penalty, frequency_penalty: in [-2, 2], over the output; repetition_penalty: above 0, over prompt and
        output, 1 for none; logit_bias: token id -> value in [-100, 100] added to its logit.
    seed: of the random draws. None: derived from the engine's seed and the prompt.
    stop: strings that end the output; stop_token_ids: tokens that do, besides the model's own end-of-sequence tokens;
        ignore_eos: go on past the latter. include_stop_str_in_output: keep what ended the output in the text.
    max_tokens: None fills the context. min_tokens: no stop before so many tokens.
    logprobs, prompt_logprobs: None, or how many of the likeliest tokens to report at each position, besides the
        actual one; taken from the raw logits, before penalties and temperature.
    detokenize: False leaves the text empty. skip_special_tokens: leave them out of the text.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        self._integer("n", 1)
        self._number("temperature", 0, math.inf)
        self._number("top_p", 0, 1, above=True)
        self._integer("top_k", -1)
        self._number("min_p", 0, 1)
        self._number("presence_penalty", -2, 2)
        self._number("frequency_penalty", -2, 2)
        self._number("repetition_penalty", 0, math.inf, above=True)
        if self.seed is not None:
            self._integer("seed", -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            self._integer("max_tokens", 1)
        self._integer("min_tokens", 0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._integer(name, 0)
        self._check_stops()
        self._check_bias()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            self._fail("min_tokens", f"at most max_tokens = {self.max_tokens}", self.min_tokens)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def penalizes(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _check_stops(self) -> None:
        stop = self.stop
        if not (stop is None or isinstance(stop, str) or _is_list_of(stop, lambda s: isinstance(s, str))):
            self._fail("stop", "a string or a list of strings", stop)
        if "" in self.stop_strings:
            self._fail("stop", "strings that are not empty", self.stop)
        if self.stop_strings and not self.detokenize:
            self._fail("detokenize", "True, since stop strings are looked for in the text", self.detokenize)
        ids = self.stop_token_ids
        if ids is not None and not _is_list_of(ids, _is_token_id):
            self._fail("stop_token_ids", "a list of token ids", ids)

    def _check_bias(self) -> None:
        bias = self.logit_bias
        if bias is None:
            return
        if not isinstance(bias, dict) or not all(map(_is_token_id, bias)):
            self._fail("logit_bias", "a dict from token ids to numbers", bias)
        for value in bias.values():
            if not _is_number(value) or not -100 <= value <= 100:
                self._fail("logit_bias", "values from -100 to 100", value)

    def _integer(self, name: str, low: int, high: int | None = None) -> None:
        value = getattr(self, name)
        if not _is_integer(value) or value < low or (high is not None and value > high):
            self._fail(name, f"an integer of at least {low}" + ("" if high is None else f" and at most {high}"), value)

    def _number(self, name: str, low: float, high: float, *, above: bool = False) -> None:
        value = getattr(self, name)
        fits = _is_number(value) and math.isfinite(value) and low <= value <= high and not (above and value == low)
        if not fits:
            bound = f"{'above' if above else 'of at least'} {low}"
            self._fail(name, f"a number {bound}" + ("" if math.isinf(high) else f" and at most {high}"), value)

    def _fail(self, name: str, expected: str, value: Any) -> None:
        raise ValueError(f"SamplingParams: {name}: expected {expected}, got {value!r}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_token_id(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_item, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
