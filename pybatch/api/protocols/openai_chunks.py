"""The pieces in which OpenAI's chat completions and completions are streamed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pybatch.api.inputs import Prompt, expect_tokenizer
from pybatch.api.outcomes import positions
from pybatch.api.protocols.echo import echo_of
from pybatch.api.protocols.openai_requests import StreamOptions, only_echo
from pybatch.api.protocols.openai_responses import (
    CompletionLogprobs,
    Echo,
    chat_logprobs,
    finish_reason,
    head,
    usage,
)
from pybatch.api.protocols.tool_calls.call import ToolCall
from pybatch.api.protocols.tool_calls.reader import CallReader
from pybatch.api.protocols.tool_calls.use import ToolUse

if TYPE_CHECKING:
    from pybatch.engine import CompletionOutput, RequestOutput
    from pybatch.model.text.tokenizer import Tokenizer

Choice = dict[str, Any]


class Chunks(ABC):
    """Turns outputs of what is new (RequestOutputKind.DELTA) into chunks.

    A piece without text has no chunk, unless it has log-probabilities. head: what each chunk begins with. samples: of
    each prompt.
    """

    def __init__(self, head: Mapping[str, Any], options: StreamOptions, samples: int) -> None:
        self._head, self._options, self._samples = head, options, samples
        self._prompt_tokens: dict[int, int] = {}  # by prompt; so are those of the next
        self._cached: dict[int, int] = {}
        self._output_tokens = 0
        self._ended: set[int] = set()

    def add(self, number: int, output: RequestOutput) -> Iterator[dict[str, Any]]:
        """The chunks of an output of the prompt of that number."""
        if number not in self._prompt_tokens:
            self._prompt_tokens[number] = len(output.prompt_token_ids)
            self._cached[number] = output.num_cached_tokens
        for sample in output.outputs:
            index = number * self._samples + sample.index
            if index in self._ended:
                continue
            self._output_tokens += len(sample.token_ids)
            for choice in self._choices(index, number, sample, output):
                yield self._chunk([choice], self._options.continuous_usage_stats)
            if sample.finish_reason is not None:
                self._ended.add(index)

    def end(self) -> Iterator[dict[str, Any]]:
        """The last chunk, if it is asked for."""
        if self._options.include_usage:
            yield self._chunk([], with_usage=True)

    @abstractmethod
    def _choices(self, index: int, number: int, sample: CompletionOutput, output: RequestOutput) -> Iterator[Choice]:
        """What the output adds to a choice, in none or several pieces."""

    def _chunk(self, choices: list[Choice], with_usage: bool) -> dict[str, Any]:
        if with_usage:
            used = usage(sum(self._prompt_tokens.values()), self._output_tokens, sum(self._cached.values()))
            return {**self._head, "choices": choices, "usage": used}
        if self._options.include_usage:
            return {**self._head, "choices": choices, "usage": None}
        return {**self._head, "choices": choices}


class ChatChunks(Chunks):
    """Of the answer to a body that chat_request has taken; id, created, model and tools as for chat_completion."""

    def __init__(
        self,
        body: Mapping[str, Any],
        options: StreamOptions,
        tokenizer: Tokenizer | None,
        *,
        id: str,
        created: int,
        model: str,
        tools: ToolUse | None = None,
    ) -> None:
        super().__init__(head(f"chatcmpl-{id}", "chat.completion.chunk", created, model), options, body.get("n") or 1)
        self._tokenizer = tokenizer
        self._top: int | None = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
        self._id, self._tools = id, tools
        self._readers: dict[int, CallReader | None] = {}  # by choice
        self._calls: Counter[int] = Counter()

    def _choices(self, index: int, number: int, sample: CompletionOutput, output: RequestOutput) -> Iterator[Choice]:
        if index not in self._readers:
            self._readers[index] = None if self._tools is None else self._tools.reader()
            yield delta(index, {"role": "assistant", "content": "", "refusal": None})
        logprobs = None
        if self._top is not None and sample.logprobs:
            logprobs = chat_logprobs(positions(sample.logprobs, self._tokenizer), self._top)
        reader = self._readers[index]
        if reader is None:
            if sample.text or logprobs is not None:
                yield delta(index, {"content": sample.text}, logprobs)
        else:
            parts = reader.add(sample.text)
            if sample.finish_reason is not None:
                parts += reader.end()
            if logprobs is not None:
                yield delta(index, {"content": ""}, logprobs)
            for part in parts:
                yield from self._part(index, part)
        if sample.finish_reason is not None:
            called = self._calls[index] > 0 and not (self._tools and self._tools.named)
            reason = finish_reason(sample.finish_reason, called=called)
            yield delta(index, {}, reason=reason)

    def _part(self, index: int, part: str | ToolCall) -> Iterator[Choice]:
        if isinstance(part, str):
            yield delta(index, {"content": part})
            return
        assert self._tools is not None
        number = self._calls[index]
        self._calls[index] += 1
        call = self._tools.call(part, self._id, index, number)
        begun = {**call, "function": {**call["function"], "arguments": ""}}
        yield delta(index, {"tool_calls": [{"index": number, **begun}]})
        yield delta(index, {"tool_calls": [{"index": number, "function": {"arguments": part.arguments}}]})


class CompletionChunks(Chunks):
    """Of the answers to a body that completion_request has taken, with these prompts."""

    def __init__(
        self,
        body: Mapping[str, Any],
        prompts: Sequence[Prompt],
        options: StreamOptions,
        tokenizer: Tokenizer | None,
        *,
        id: str,
        created: int,
        model: str,
    ) -> None:
        super().__init__(head(f"cmpl-{id}", "text_completion", created, model), options, body.get("n") or 1)
        self._body, self._prompts, self._tokenizer = body, prompts, tokenizer
        self._logprobs: dict[int, CompletionLogprobs] = {}  # by choice, where they are asked for
        self._begun: set[int] = set()

    def add(self, number: int, output: RequestOutput) -> Iterator[dict[str, Any]]:
        if only_echo(self._body):
            nothing: dict[str, Any] = {"text": "", "token_ids": [], "logprobs": None}
            output = replace(output, outputs=[replace(sample, **nothing) for sample in output.outputs])
        return super().add(number, output)

    def _choices(self, index: int, number: int, sample: CompletionOutput, output: RequestOutput) -> Iterator[Choice]:
        echo = Echo("")
        if index not in self._begun:
            self._begun.add(index)
            if self._body.get("echo"):
                echo = echo_of(self._body, self._prompts[number], output, expect_tokenizer(self._tokenizer))
            if self._body.get("logprobs") is not None:
                self._logprobs[index] = CompletionLogprobs(echo.hidden)
        logprobs = None
        if index in self._logprobs and (sample.logprobs or echo.logprobs):
            following = positions(sample.logprobs or (), self._tokenizer)
            logprobs = self._logprobs[index].add([*echo.logprobs, *following])
        text = echo.text + sample.text
        if text or logprobs is not None or sample.finish_reason is not None:
            reason = None if sample.finish_reason is None else finish_reason(sample.finish_reason)
            yield {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


def delta(
    index: int, fields: Mapping[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> Choice:
    return {"index": index, "delta": fields, "logprobs": logprobs, "finish_reason": reason}
