"""Bodies of OpenAI's responses: chat completions and completions."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any

from pybatch.api.outcomes import Answer, Failure, Sample

Entry = Mapping[str, Any]  # one token at one position, as pybatch.api.outcomes.positions gives it

UNLIKELY = -9999.0  # in place of minus infinity, which JSON lacks


def chat_completion(body: Mapping[str, Any], answer: Answer, *, id: str, created: int, model: str) -> dict[str, Any]:
    """The response to a body that chat_request has taken. id: without a prefix. created: in seconds since 1970. model:
    the name to report."""
    top = body.get("top_logprobs") or 0
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": sample.text, "refusal": None},
            "logprobs": chat_logprobs(sample, top) if body.get("logprobs") else None,
            "finish_reason": finish_reason(sample),
        }
        for index, sample in enumerate(answer.samples)
    ]
    return response(f"chatcmpl-{id}", "chat.completion", created, model, choices, [answer])


def text_completion(
    body: Mapping[str, Any], answers: Sequence[Answer], *, id: str, created: int, model: str
) -> dict[str, Any]:
    """The response to a body that completion_request has taken, with an answer for each of its prompts."""
    echoed = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    choices: list[dict[str, Any]] = []
    for number, answer in enumerate(answers):
        before = echoed[number] if body.get("echo") else ""
        for sample in answer.samples:
            choices.append(
                {
                    "text": before + sample.text,
                    "index": len(choices),
                    "logprobs": completion_logprobs(sample) if body.get("logprobs") is not None else None,
                    "finish_reason": finish_reason(sample),
                }
            )
    return response(f"cmpl-{id}", "text_completion", created, model, choices, answers)


def response(
    id: str, kind: str, created: int, model: str, choices: list[dict[str, Any]], answers: Sequence[Answer]
) -> dict[str, Any]:
    prompt, output = sum(each.prompt_tokens for each in answers), sum(each.output_tokens for each in answers)
    return {
        "id": id,
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
        "system_fingerprint": None,
    }


def error_body(failure: Failure) -> dict[str, Any]:
    """The body of a response with a status of 400 or above."""
    kind = "server_error" if failure.code == "server_error" else "invalid_request_error"
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}}


def finish_reason(sample: Sample) -> str:
    return "length" if sample.finish_reason == "length" else "stop"


def chat_logprobs(sample: Sample, top: int) -> dict[str, Any]:
    """top: how many of the likeliest tokens to list at each position."""
    content = [
        {**token_logprob(at[0]), "top_logprobs": [token_logprob(entry) for entry in likeliest(at)[:top]]}
        for at in sample.logprobs or ()
        if at is not None
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(sample: Sample) -> dict[str, Any]:
    """With the actual token among the likeliest ones, and offsets into the sample's text."""
    found = [at for at in sample.logprobs or () if at is not None]
    actual = [at[0] for at in found]
    return {
        "tokens": [token_text(entry) for entry in actual],
        "token_logprobs": [logprob(entry) for entry in actual],
        "top_logprobs": [by_text(at) for at in found],
        "text_offset": offsets(actual),
    }


def offsets(tokens: Sequence[Entry]) -> list[int]:
    """Where in the text each token begins; one that goes on with a character, where that begins."""
    decoder, end, starts = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
    for token in tokens:
        starts.append(end)
        end += len(decoder.decode(token_bytes(token)))
    return starts


def likeliest(at: Sequence[Entry]) -> list[Entry]:
    """A position's tokens, the likeliest first."""
    return sorted(at, key=lambda entry: entry["rank"])


def by_text(at: Sequence[Entry]) -> dict[str, float]:
    """A position's log-probabilities; of tokens with the same text the likelier one's."""
    found: dict[str, float] = {}
    for entry in likeliest(at):
        found.setdefault(token_text(entry), logprob(entry))
    return found


def token_logprob(entry: Entry) -> dict[str, Any]:
    return {"token": token_text(entry), "bytes": list(token_bytes(entry)), "logprob": logprob(entry)}


def token_text(entry: Entry) -> str:
    text: str | None = entry["decoded_token"]
    return f"token_id:{entry['token_id']}" if text is None else text


def token_bytes(entry: Entry) -> bytes:
    """A token's own, which may be a part of a character that its text does not show."""
    return bytes(entry["bytes"]) if "bytes" in entry else token_text(entry).encode()


def logprob(entry: Entry) -> float:
    return max(float(entry["logprob"]), UNLIKELY)
