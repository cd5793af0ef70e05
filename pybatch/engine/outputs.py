"""What the engine hands back; field names follow vLLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pybatch.engine.metrics import RequestMetrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True)
class Logprob:
    """Natural logarithm of a token's probability, and its rank in the vocabulary (1: the likeliest)."""

    logprob: float
    rank: int
    decoded_token: str | None


TokenLogprobs = dict[int, Logprob]  # the actual token first, then the likeliest, by token id


def logprobs_entry(
    decode: Callable[[int], str | None],
    token: int,
    logprob: float,
    rank: int,
    top_ids: Sequence[int],
    top_logprobs: Sequence[float],
) -> TokenLogprobs:
    """Of one position. decode: a token's text, if there is a tokenizer."""
    entry = {token: Logprob(logprob, rank, decode(token))}
    for i, (top, top_logprob) in enumerate(zip(top_ids, top_logprobs, strict=True)):
        if top != token:
            entry[top] = Logprob(top_logprob, i + 1, decode(top))
    return entry


@dataclass(slots=True)
class CompletionOutput:
    """One sample. stop_reason: the stop string or stop token id that ended it; None for end-of-sequence or length."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """A request's prompt and samples so far. prompt_logprobs[0] is None: nothing precedes the first token.

    error says why finish_reason is "error"; error_code is OpenAI's word for it, context_length_exceeded or
    invalid_request, or server_error for what happened while it ran. num_cached_tokens: prompt tokens found in the
    prefix cache. pooled: what PoolingParams ask for, an embedding or a score, float32. A stream of
    RequestOutputKind.DELTA holds in each output what is new: text, tokens and log-probabilities.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    error: str | None = None
    num_cached_tokens: int = 0
    error_code: str | None = None
    pooled: NDArray[np.float32] | None = None

    def add(self, following: RequestOutput) -> None:
        """Takes in the next output of a stream of deltas: this one then holds what is new in both."""
        samples = {sample.index: sample for sample in self.outputs}
        for more in following.outputs:
            sample = samples.get(more.index)
            if sample is None:
                self.outputs.append(more)
                continue
            sample.text += more.text
            sample.token_ids += more.token_ids
            sample.cumulative_logprob = more.cumulative_logprob
            if more.logprobs is not None:
                sample.logprobs = [*(sample.logprobs or ()), *more.logprobs]
            sample.finish_reason, sample.stop_reason = more.finish_reason, more.stop_reason
        self.prompt_logprobs = self.prompt_logprobs or following.prompt_logprobs
        self.finished, self.metrics = following.finished, following.metrics
        self.error, self.error_code = following.error, following.error_code
