"""Bodies of OpenAI's responses: chat completions and completions."""

from __future__ import annotations

import codecs
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.protocols.openai_requests import only_echo
from pybatch.api.protocols.tool_calls.use import ToolUse

Entry = Mapping[str, Any]  # one token at one position, as pybatch.api.outcomes.positions gives it
Positions = Sequence[Sequence[Entry] | None]

UNLIKELY = -9999.0  # in place of minus infinity, which JSON lacks

NOTHING = Sample("", 0, "length", logprobs=[])


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt before its completions.

    logprobs: of its tokens, where these are wanted; the first one's is None. hidden: ids of tokens that are not in the
    text.
    """

    text: str
    logprobs: Positions = ()
    hidden: Container[int] = ()


def chat_completion(
    body: Mapping[str, Any],
    answer: Answer,
    *,
    id: str,
    created: int,
    model: str,
    cached: int | None = None,
    tools: ToolUse | None = None,
) -> dict[str, Any]:
    """The response to a body that chat_request has taken. id: without a prefix. created: in seconds since 1970. model:
    the name to report. cached: prompt tokens found in the prefix cache, if that is to be told. tools: how their calls
    are read; None: they stay text."""
    top = body.get("top_logprobs") or 0
    messages = [message(index, sample.text, id, tools) for index, sample in enumerate(answer.samples)]
    choices = [
        {
            "index": index,
            "message": messages[index],
            "logprobs": chat_logprobs(sample.logprobs or (), top) if body.get("logprobs") else None,
            "finish_reason": finish_reason(
                sample.finish_reason, called="tool_calls" in messages[index] and not (tools and tools.named)
            ),
        }
        for index, sample in enumerate(answer.samples)
    ]
    used = usage(answer.prompt_tokens, answer.output_tokens, cached)
    made = {**head(f"chatcmpl-{id}", "chat.completion", created, model), "choices": choices, "usage": used}
    if body.get("prompt_logprobs") is not None:
        made["prompt_logprobs"] = prompt_logprobs(answer)
    return made


def message(choice: int, text: str, id: str, tools: ToolUse | None) -> dict[str, Any]:
    """An answer's. id: as for chat_completion."""
    if tools is None:
        return {"role": "assistant", "content": text, "refusal": None}
    reader = tools.reader()
    parts = [*reader.add(text), *reader.end()]
    said = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if not isinstance(part, str)]
    if not calls:
        return {"role": "assistant", "content": said, "refusal": None}
    made = [tools.call(call, id, choice, number) for number, call in enumerate(calls)]
    return {"role": "assistant", "content": said or None, "refusal": None, "tool_calls": made}


def text_completion(
    body: Mapping[str, Any],
    answers: Sequence[Answer],
    *,
    id: str,
    created: int,
    model: str,
    echoes: Sequence[Echo] | None = None,
    cached: int | None = None,
) -> dict[str, Any]:
    """The response to a body that completion_request has taken, with an answer for each of its prompts.

    echoes: of each prompt, if the body asks for them; None: of texts without log-probabilities, which the body has.
    cached: as for chat_completion.
    """
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    choices: list[dict[str, Any]] = []
    for number, answer in enumerate(answers):
        echo = Echo("")
        if body.get("echo"):
            echo = Echo(prompts[number]) if echoes is None else echoes[number]
        for sample in [NOTHING] * len(answer.samples) if only_echo(body) else answer.samples:
            logprobs = None
            if body.get("logprobs") is not None:
                logprobs = CompletionLogprobs(echo.hidden).add([*echo.logprobs, *(sample.logprobs or ())])
            choice = {
                "text": echo.text + sample.text,
                "index": len(choices),
                "logprobs": logprobs,
                "finish_reason": finish_reason(sample.finish_reason),
            }
            if body.get("prompt_logprobs") is not None:
                choice["prompt_logprobs"] = prompt_logprobs(answer)
            choices.append(choice)
    prompt, output = sum(each.prompt_tokens for each in answers), sum(each.output_tokens for each in answers)
    used = usage(prompt, 0 if only_echo(body) else output, cached)
    return {**head(f"cmpl-{id}", "text_completion", created, model), "choices": choices, "usage": used}


def head(id: str, kind: str, created: int, model: str) -> dict[str, Any]:
    """What a response and each chunk of a stream begin with."""
    return {"id": id, "object": kind, "created": created, "model": model, "system_fingerprint": None}


def usage(prompt: int, output: int, cached: int | None = None) -> dict[str, Any]:
    used: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    if cached is not None:
        used["prompt_tokens_details"] = {"cached_tokens": cached}
    return used


ERROR_TYPES = {
    **dict.fromkeys(("server_error", "server_busy", "server_stopping"), "server_error"),
    "rate_limit_exceeded": "rate_limit_error",
}
"""By code."""


def error_body(failure: Failure) -> dict[str, Any]:
    """The body of a response with a status of 400 or above."""
    kind = ERROR_TYPES.get(failure.code, "invalid_request_error")
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}}


def finish_reason(reason: str, *, called: bool = False) -> str:
    """called: tools, of the model's own choice: a call of one that the request has named ends as text does."""
    return "length" if reason == "length" else "tool_calls" if called else "stop"


def chat_logprobs(positions: Positions, top: int) -> dict[str, Any]:
    """top: how many of the likeliest tokens to list at each position."""
    content = [
        {**token_logprob(at[0]), "top_logprobs": [token_logprob(entry) for entry in likeliest(at)[:top]]}
        for at in positions
        if at is not None
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(answer: Answer) -> list[dict[str, Any] | None]:
    """vLLM's: by token id at each position of the prompt, None at the first."""
    return [
        None
        if at is None
        else {
            str(entry["token_id"]): {
                "logprob": logprob(entry),
                "rank": entry["rank"],
                "decoded_token": entry["decoded_token"],
            }
            for entry in at
        }
        for at in answer.prompt_logprobs or ()
    ]


class CompletionLogprobs:
    """Log-probabilities of a completion, with the actual token among the likeliest ones, and offsets into its text. May
    be given in pieces. hidden: ids of tokens that are not in the text."""

    def __init__(self, hidden: Container[int] = ()) -> None:
        self._hidden = hidden
        self._decoder, self._end = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def add(self, positions: Positions) -> dict[str, Any]:
        """Of the positions that follow those given before."""
        found = [at for at in positions if at is not None]
        actual = [at[0] for at in found]
        return {
            "tokens": [token_text(entry) for entry in actual],
            "token_logprobs": [None if entry["logprob"] is None else logprob(entry) for entry in actual],
            "top_logprobs": [None if at[0]["logprob"] is None else by_text(at) for at in found],
            "text_offset": [self._place(entry) for entry in actual],
        }

    def _place(self, entry: Entry) -> int:
        """Where in the text the next token begins; one that goes on with a character, where that begins."""
        start = self._end
        if entry["token_id"] not in self._hidden:
            self._end += len(self._decoder.decode(token_bytes(entry)))
        return start


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
