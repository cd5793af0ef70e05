"""Sampling parameters as the engine runs them: a copy that never changes, in numbers that the kernels hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from pybatch.engine.beams import EarlyStopping
from pybatch.engine.kv_policies import POLICIES, HeavyHitters, KvPolicy, SnapKV, kv_policy
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.pooling_params import Pooling
from pybatch.engine.sampling_params import GREEDY_TEMPERATURE, RequestOutputKind, SamplingParams
from pybatch.engine.structured.params import StructuredOutputsParams

FLOAT32_LEAST, FLOAT32_MOST = 2.0**-126, float(np.finfo(np.float32).max)

Encode = Callable[[str], list[int]]
"""Text to token ids, without special tokens."""

_FIELDS = [field.name for field in fields(SamplingParams)]
_PLAIN = frozenset(
    {bool, int, float, str, type(None), RequestOutputKind, StructuredOutputsParams, LoRARequest, *POLICIES.values()}
)
_values: Callable[[SamplingParams], tuple[object, ...]] = attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParams:
    """The fields of SamplingParams, checked. What differs is said here."""

    n: int
    beam_width: int
    """0 where it is not a beam search."""
    length_penalty: float
    early_stopping: EarlyStopping
    greedy: bool
    temperature: float  # 0 where greedy
    top_p: float
    top_k: int
    """0 for all."""
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    penalizes: bool
    """A penalty is not neutral."""
    adjusts: bool
    """A penalty, bias or bad word changes the logits at every token, besides min_tokens."""
    foreseeable: bool
    """How the logits become a token depends on how many are before it, not on which."""
    seed: int | None
    """As an int64."""
    stop_strings: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    max_tokens: int | None
    min_tokens: int
    logprobs: int | None
    """No more than the vocabulary; so is prompt_logprobs."""
    prompt_logprobs: int | None
    detokenize: bool
    skip_special_tokens: bool
    include_stop_str_in_output: bool
    output_kind: RequestOutputKind
    logit_bias: dict[int, float]
    allowed: NDArray[np.int32] | None
    """[ceil(vocab / 32)], allowed_token_ids as a bit set."""
    bad_words: tuple[tuple[int, ...], ...]
    """As token ids; of each the last is not drawn after the others."""
    truncate_prompt_tokens: int | None
    speculate: bool
    kv_policy: KvPolicy | None
    structured_outputs: StructuredOutputsParams | None
    lora_request: LoRARequest | None = None
    pooling: Pooling | None = None
    """Of a request that generates nothing."""

    @property
    def masked(self) -> bool:
        """Not every token may be drawn."""
        return self.structured_outputs is not None or self.allowed is not None

    @property
    def needs_all_blocks(self) -> bool:
        """Whether it may need blocks of its own for all of its tokens, though others have some of them: a prompt of
        which something is wanted at every token is computed whole, and what is kept of one that is pruned is gathered
        in the places of its first tokens."""
        of_all = self.prompt_logprobs is not None or (self.pooling is not None and self.pooling.of_all_tokens)
        return of_all or isinstance(self.kv_policy, SnapKV | HeavyHitters) or self.lora_request is not None


def plain_values(params: SamplingParams) -> tuple[object, ...] | None:
    """The values and their types (True equals 1), by which equal parameters are known again. None if one is of a type
    whose objects may change."""
    if type(params) is not SamplingParams:
        return None
    values = _values(params)
    types = tuple(map(type, values))
    return values + types if _PLAIN.issuperset(types) else None


def checked(params: SamplingParams) -> SamplingParams:
    """A copy, with the checks of its making done again: fields may have been set since. Raises ValueError."""
    if not isinstance(params, SamplingParams):
        raise ValueError(f"sampling_params: expected SamplingParams, got {type(params).__name__}")
    copy = SamplingParams(**{name: getattr(params, name) for name in _FIELDS})
    copy.expect_min_below_max()
    return copy


def resolve(params: SamplingParams, *, max_model_len: int, vocab_size: int, encode: Encode | None) -> RequestParams:
    """Takes checked parameters into the kernels' numbers. Raises ValueError for what they cannot hold or do.

    A value beyond the vocabulary or the context means all of it, and a top_p below float32's least the likeliest token.
    encode: None if there is no tokenizer.
    """
    logit_bias = {int(token): float(bias) for token, bias in (params.logit_bias or {}).items()}
    stop_token_ids = frozenset(int(token) for token in params.stop_token_ids or ())
    allowed = params.allowed_token_ids
    for name, ids in (("stop_token_ids", stop_token_ids), ("logit_bias", logit_bias), ("allowed_token_ids", allowed)):
        expect_in_vocabulary(name, ids or (), vocab_size)
    if params.stop_strings and encode is None:
        raise ValueError("stop: expected no stop strings, since the engine has no tokenizer")
    if params.structured_outputs is not None:
        _expect_structure(has_tokenizer=encode is not None)
    if params.bad_words and encode is None:
        raise ValueError("bad_words: expected none, since the engine has no tokenizer")
    bad_words = () if not params.bad_words or encode is None else _token_sequences(params.bad_words, encode, vocab_size)
    repetition = float(params.repetition_penalty)
    if not FLOAT32_LEAST <= repetition <= FLOAT32_MOST:
        raise ValueError(
            f"repetition_penalty: expected a number that float32 holds, {FLOAT32_LEAST:.3g} to {FLOAT32_MOST:.3g}, "
            f"got {repetition!r}"
        )
    greedy = params.temperature < GREEDY_TEMPERATURE or params.use_beam_search
    penalizes = params.presence_penalty != 0 or params.frequency_penalty != 0 or repetition != 1
    follows = penalizes or bool(bad_words) or params.structured_outputs is not None
    return RequestParams(
        n=int(params.n),
        beam_width=int(params.best_of or params.n) if params.use_beam_search else 0,
        length_penalty=float(params.length_penalty),
        early_stopping=params.early_stopping if params.early_stopping == "never" else bool(params.early_stopping),
        greedy=greedy,
        temperature=0.0 if greedy else min(float(params.temperature), FLOAT32_MOST),
        top_p=max(float(params.top_p), FLOAT32_LEAST),
        top_k=int(params.top_k) if 0 < params.top_k < vocab_size else 0,
        min_p=float(params.min_p),
        presence_penalty=float(params.presence_penalty),
        frequency_penalty=float(params.frequency_penalty),
        repetition_penalty=repetition,
        penalizes=penalizes,
        adjusts=penalizes or bool(logit_bias) or bool(bad_words),
        foreseeable=not (follows or params.use_beam_search or params.kv_policy is not None),
        seed=None if params.seed is None else as_int64(int(params.seed)),
        stop_strings=params.stop_strings,
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(params.ignore_eos),
        max_tokens=None if params.max_tokens is None else int(params.max_tokens),
        min_tokens=min(int(params.min_tokens), max_model_len),
        logprobs=_count(params.logprobs, vocab_size),
        prompt_logprobs=_count(params.prompt_logprobs, vocab_size),
        detokenize=bool(params.detokenize),
        skip_special_tokens=bool(params.skip_special_tokens),
        include_stop_str_in_output=bool(params.include_stop_str_in_output),
        output_kind=params.output_kind,
        logit_bias=logit_bias,
        allowed=None if allowed is None else _bit_set(allowed, vocab_size),
        bad_words=bad_words,
        truncate_prompt_tokens=None if params.truncate_prompt_tokens is None else int(params.truncate_prompt_tokens),
        speculate=bool(params.speculate),
        kv_policy=kv_policy(params.kv_policy),
        structured_outputs=params.structured_outputs,
        lora_request=params.lora_request,
    )


def _expect_structure(*, has_tokenizer: bool) -> None:
    if not has_tokenizer:
        raise ValueError("structured_outputs: expected none, since the engine has no tokenizer")
    if find_spec("llguidance") is None:
        raise ValueError("structured_outputs: needs the package llguidance: pip install 'pybatch[structured]'")


def as_int64(value: int) -> int:
    """The value modulo 2**64, in two's complement."""
    return (value + 2**63) % 2**64 - 2**63


def expect_in_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    """Raises ValueError, with the first id that is not there."""
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}: token id {token} is not in the vocabulary of {vocab_size}")


def _count(logprobs: int | None, vocab_size: int) -> int | None:
    return None if logprobs is None else vocab_size if logprobs == -1 else min(int(logprobs), vocab_size)


def _bit_set(tokens: Iterable[int], vocab_size: int) -> NDArray[np.int32]:
    bits = np.zeros(-(-vocab_size // 32) * 32, np.bool_)
    bits[list(tokens)] = True
    return np.packbits(bits, bitorder="little").view(np.int32)


def _token_sequences(words: Iterable[str], encode: Encode, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written inside a text, and after a space where that is one other token (vLLM's rule)."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        inside = tuple(encode(word.lstrip() or word))
        spaced = tuple(encode(f" {word.lstrip()}"))
        found[inside] = None
        if inside and len(spaced) == len(inside) and spaced[0] != inside[0]:
            found[spaced] = None
    return tuple(ids for ids in found if ids and max(ids) < vocab_size)
