"""How one request is sampled and when it stops; field names, their order and their defaults follow vLLM."""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from pybatch.engine.arguments import suggest_names
from pybatch.engine.kv_policies import KvPolicy, kv_policy
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.structured.params import StructuredOutputsParams

GREEDY_TEMPERATURE = 1e-5  # below this, sampling is greedy
MAX_SAMPLES = 16384  # of one request, as in vLLM
DEFAULT_MAX_TOKENS = 16  # as in vLLM


class RequestOutputKind(Enum):
    """What each output of a stream holds: everything so far, what is new, or there is only the final one."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@suggest_names
@dataclass(slots=True)
class SamplingParams:
    """Sampling parameters of one request. A bad value raises ValueError, an unknown keyword TypeError.

    n: answers to a prompt, at most 16384: the best of a beam search, or samples, of which sample i draws as a request
        of its own with seed + i would.
    presence_penalty, frequency_penalty: in [-2, 2], over the output; repetition_penalty: above 0, over prompt and
        output, 1 for none.
    temperature: 0 is greedy. top_p in (0, 1]; top_k: 0 or -1 for all; min_p in [0, 1], a share of the largest
        probability.
    seed: of the random draws, 64 bits. None or -1: derived from the engine's seed and the prompt.
    stop: strings that end the output; stop_token_ids: tokens that do, besides the model's own end-of-sequence tokens;
        ignore_eos: go on past the latter. include_stop_str_in_output: keep what ended the output in the text.
    max_tokens: of output; None fills the context. min_tokens: no stop before so many tokens.
    logprobs, prompt_logprobs: None, or how many of the likeliest tokens to report at each position, besides the
        actual one, -1 for all; taken from the raw logits, before penalties and temperature.
    detokenize: False leaves the text empty. skip_special_tokens: leave them out of the text.
    truncate_prompt_tokens: keep only so many of the prompt's last tokens; -1: as many as leave room for one of output.
    output_kind: what the outputs of a stream hold; without a stream there is one output, with everything.
    logit_bias: token id -> value in [-100, 100] added to its logit.
    allowed_token_ids: sample from these alone, so add the end-of-sequence token if the output may end by itself.
    bad_words: texts that are not to be generated: a token that would complete one, at the start of a word or inside
        it, is not drawn.
    use_beam_search: the n likeliest answers, as far as a search with best_of (default: n) beams finds them, best first,
        instead of samples; as transformers' generate(num_beams=best_of, num_return_sequences=n). Nothing is drawn, so
        temperature, top_p, top_k, min_p and seed change nothing; log-probabilities are those that the search adds up.
    length_penalty: in [-10, 10], of a beam search: an answer's score is the sum of its log-probabilities divided by
        its tokens to this power, so that above 0 longer ones gain.
    early_stopping: of a beam search, when best_of answers are there: True ends it; False, once the best beam's score
        is below theirs; "never", once it cannot come to be better.
    speculate: False: without drafts, where the engine has a speculative_config. The output is the same.
    kv_policy: None keeps all tokens in the KV cache; else which are kept: StreamingLLM(...), or the same as an object,
        {"type": "streaming_llm", ...}.
    structured_outputs: what the output has to look like; a dict of its fields will do. A sequence ends with reason
        "stop" where nothing can follow, without an end-of-sequence token and whatever min_tokens.
    lora_request: the LoRA adapter to answer with, as generate's argument of this name; None: the model alone.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = DEFAULT_MAX_TOKENS
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: int | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    use_beam_search: bool = False
    best_of: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    speculate: bool = True
    kv_policy: KvPolicy | dict[str, Any] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    lora_request: LoRARequest | None = None

    VLLM_ONLY: ClassVar[dict[str, tuple[Any, ...]]] = {  # by name, the values that ask for nothing
        "extra_args": (None, {}),
        "flat_logprobs": (False,),
        "guided_decoding": (None,),
        "logits_processors": (None, []),
        "logprob_token_ids": (None,),
        "prompt_logprob_start": (None,),
        "prompt_logprob_token_ids": (None,),
        "repetition_detection": (None,),
        "skip_clone": (False, True),
        "skip_reading_prefix_cache": (None, False),
        "spaces_between_special_tokens": (True,),
        "stream_interval": (None, 1),
        "thinking_token_budget": (None, -1),
    }

    def __post_init__(self) -> None:
        self._integer("n", 1, MAX_SAMPLES)
        self._number("presence_penalty", -2, 2)
        self._number("frequency_penalty", -2, 2)
        self._number("repetition_penalty", 0, math.inf, above=True)
        self._number("temperature", 0, math.inf)
        self._number("top_p", 0, 1, above=True)
        self._integer("top_k", -1)
        self._number("min_p", 0, 1)
        if self.seed is not None:
            self._integer("seed", -(2**63), 2**64 - 1)
            self.seed = None if self.seed == -1 else self.seed
        if self.max_tokens is not None:
            self._integer("max_tokens", 1)
        self._integer("min_tokens", 0)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._integer(name, -1)
        if self.truncate_prompt_tokens is not None:
            self._integer("truncate_prompt_tokens", -1)
            if self.truncate_prompt_tokens == 0:
                self._fail("truncate_prompt_tokens", "-1 or a positive integer", 0)
        flags = (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "include_stop_str_in_output",
            "use_beam_search",
            "speculate",
        )
        for name in flags:
            if not _is_bool(getattr(self, name)):
                self._fail(name, "True or False", getattr(self, name))
        if not isinstance(self.output_kind, RequestOutputKind):
            self._fail("output_kind", "a RequestOutputKind", self.output_kind)
        if isinstance(self.structured_outputs, Mapping):
            self.structured_outputs = StructuredOutputsParams(**self.structured_outputs)
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            self._fail("structured_outputs", "StructuredOutputsParams or a dict of them", self.structured_outputs)
        if not isinstance(self.lora_request, LoRARequest | None):
            self._fail("lora_request", "a LoRARequest", self.lora_request)
        self._check_beams()
        try:
            self.kv_policy = kv_policy(self.kv_policy)
        except ValueError as error:
            raise ValueError(f"SamplingParams: {error}") from None
        self._check_stops()
        self._check_tokens()
        if self.max_tokens != DEFAULT_MAX_TOKENS:  # which may be set after min_tokens: submission checks it
            self.expect_min_below_max()

    def expect_min_below_max(self) -> None:
        """Raises ValueError if min_tokens is above max_tokens."""
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            self._fail("min_tokens", f"at most max_tokens = {self.max_tokens}", self.min_tokens)

    def clone(self) -> SamplingParams:
        """A deep copy."""
        return copy.deepcopy(self)

    @property
    def num_sequences(self) -> int:
        """How many a request comes to: its samples, or the beams of its search."""
        return self.n if self.best_of is None else self.best_of

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def _check_beams(self) -> None:
        self._number("length_penalty", -10, 10)
        if not _is_bool(self.early_stopping) and self.early_stopping != "never":
            self._fail("early_stopping", "True, False or 'never'", self.early_stopping)
        if self.best_of is not None and self.use_beam_search:
            self._integer("best_of", self.n, MAX_SAMPLES)
        elif self.best_of not in (None, 1, self.n):
            self._fail("best_of", "None or n's value, without use_beam_search", self.best_of)
        else:
            self.best_of = None

    def _check_stops(self) -> None:
        stop = self.stop
        if not (stop is None or isinstance(stop, str) or _is_list_of(stop, _is_text)):
            self._fail("stop", "a string or a list of strings", stop)
        if "" in self.stop_strings:
            self._fail("stop", "strings that are not empty", self.stop)
        if self.stop_strings and not self.detokenize:
            self._fail("detokenize", "True, since stop strings are looked for in the text", self.detokenize)
        words = self.bad_words
        if words is not None and not (_is_list_of(words, _is_text) and all(words)):
            self._fail("bad_words", "a list of strings that are not empty", words)

    def _check_tokens(self) -> None:
        for name in ("stop_token_ids", "allowed_token_ids"):
            ids = getattr(self, name)
            if ids is not None and not _is_list_of(ids, _is_token_id):
                self._fail(name, "a list of token ids", ids)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            self._fail("allowed_token_ids", "at least one token id", self.allowed_token_ids)
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
        if not _is_number(value) or not low <= value <= high or (above and value == low):
            bound = f"{'above' if above else 'of at least'} {low}"
            self._fail(name, f"a number {bound}" + ("" if math.isinf(high) else f" and at most {high}"), value)

    def _fail(self, name: str, expected: str, value: Any) -> None:
        raise ValueError(f"SamplingParams: {name}: expected {expected}, got {reprlib.repr(value)}")


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _is_token_id(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(is_item, value))


def _is_number(value: Any) -> bool:
    """A finite one that a float can hold."""
    if type(value) not in (int, float) and (not isinstance(value, Real) or isinstance(value, bool)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
