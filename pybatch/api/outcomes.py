"""What became of a request: an answer or a failure, independent of how it is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybatch.engine import RequestOutput
    from pybatch.engine.outputs import Logprob, TokenLogprobs
    from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of an answer. tokens: how many were generated. logprobs: as `positions` gives them."""

    text: str
    tokens: int
    finish_reason: str
    stop_reason: int | str | None = None
    logprobs: list[list[dict[str, Any]] | None] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says to a request: everything that is written of it, in types that JSON has. pooled: in place of
    samples, of one that generates nothing: an embedding, or one number, a score."""

    prompt_tokens: int
    samples: tuple[Sample, ...]
    prompt_logprobs: list[list[dict[str, Any]] | None] | None = None
    pooled: list[float] | None = None

    @property
    def output_tokens(self) -> int:
        """Of all samples."""
        return sum(sample.tokens for sample in self.samples)

    def to_json(self) -> bytes:
        return _encode(self).encode("utf-8", "surrogatepass")

    @classmethod
    def from_json(cls, text: bytes) -> Answer:
        fields = json.loads(text.decode("utf-8", "surrogatepass"))
        return cls(**{**fields, "samples": tuple(Sample(**sample) for sample in fields["samples"])})


@dataclass(frozen=True, slots=True)
class JoinedAnswer(Answer):
    """To a request that has several prompts: the samples of all in their order, and the sum of their tokens.

    parts: the answer to each prompt."""

    parts: tuple[Answer, ...] = ()


def _fields(part: Answer | Sample) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__slots__}


_encode = json.JSONEncoder(ensure_ascii=False, default=_fields).encode


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer. code: in the words of OpenAI's API and batches, such as invalid_json_line. param: the
    parameter at fault, if it is one."""

    message: str
    code: str = "invalid_request"
    param: str | None = None


Outcome = Answer | Failure


def first_failure(outcomes: Sequence[Outcome | None], name: str = "prompt") -> Failure | None:
    """Why a request has no answer, of which each prompt has an outcome, or None so far. name: of a prompt."""
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, Failure):
            return outcome if len(outcomes) == 1 else replace(outcome, message=f"{name}[{number}]: {outcome.message}")
    return None


def joined(answers: Sequence[Answer]) -> Answer:
    """Of those to a request's prompts."""
    if len(answers) == 1:
        return answers[0]
    samples = tuple(sample for answer in answers for sample in answer.samples)
    return JoinedAnswer(sum(answer.prompt_tokens for answer in answers), samples, parts=tuple(answers))


def parts_of(answer: Answer) -> Sequence[Answer]:
    """Those that `joined` has joined, or the one answer."""
    return answer.parts if isinstance(answer, JoinedAnswer) else (answer,)


def outcome_of(output: RequestOutput, tokenizer: Tokenizer | None = None) -> Outcome:
    """Of a finished request. tokenizer: as for `positions`."""
    if output.error is not None:
        return Failure(output.error, output.error_code or "invalid_request")
    if output.pooled is not None:
        return Answer(len(output.prompt_token_ids), (), pooled=output.pooled.tolist())
    return Answer(
        prompt_tokens=len(output.prompt_token_ids),
        samples=tuple(
            Sample(
                sample.text,
                len(sample.token_ids),
                sample.finish_reason or "abort",
                sample.stop_reason,
                None if sample.logprobs is None else positions(sample.logprobs, tokenizer),
            )
            for sample in output.outputs
        ),
        prompt_logprobs=None if output.prompt_logprobs is None else positions(output.prompt_logprobs, tokenizer),
    )


def positions(
    logprobs: Sequence[TokenLogprobs | None], tokenizer: Tokenizer | None = None
) -> list[list[dict[str, Any]] | None]:
    """At each position the actual token, then the likeliest ones; None at a prompt's first token.

    tokenizer: tells the bytes of tokens that are no whole characters, whose texts have U+FFFD for them.
    """
    return [None if at is None else [entry(token, of, tokenizer) for token, of in at.items()] for at in logprobs]


def entry(token: int, of: Logprob, tokenizer: Tokenizer | None) -> dict[str, Any]:
    text = of.decoded_token
    fields: dict[str, Any] = {"token_id": token, "logprob": of.logprob, "rank": of.rank, "decoded_token": text}
    if tokenizer is not None and text is not None and "\ufffd" in text:
        fields["bytes"] = list(tokenizer.token_bytes(token))
    return fields
