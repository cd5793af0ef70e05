"""The events of Anthropic's streams."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pybatch.api.protocols.anthropic_responses import call_block, ending, message_start, text_block, usage
from pybatch.api.protocols.tool_calls.call import ToolCall
from pybatch.api.protocols.tool_calls.use import ToolUse
from pybatch.engine import RequestOutput

Event = dict[str, Any]
"""Its name is its type."""


class MessageEvents:
    """A message as events, of which the blocks and the ending are those of message_response.

    body: that message_request has taken. id: without a prefix. model: the name to report. tools: how their calls are
    read; None: they stay text.
    """

    def __init__(self, body: Mapping[str, Any], *, id: str, model: str, tools: ToolUse | None = None) -> None:
        self._max_tokens, self._id, self._model = body["max_tokens"], id, model
        self._tools = tools
        self._reader = None if tools is None else tools.reader()
        self._tokens = self._calls = 0
        self._blocks = 0  # that have begun
        self._in_text = self._started = False

    def of(self, output: RequestOutput) -> Iterator[Event]:
        """Of the next output of a stream of deltas. The message is complete when that is finished."""
        (sample,) = output.outputs
        self._tokens += len(sample.token_ids)
        used = usage(len(output.prompt_token_ids), self._tokens, output.num_cached_tokens)
        if not self._started:
            self._started = True
            yield {"type": "message_start", "message": {**message_start(self._id, self._model), "usage": used}}
            yield {"type": "ping"}
        last = sample.finish_reason is not None
        for part in self._parts(sample.text, last):
            yield from self._call(part) if isinstance(part, ToolCall) else self._text(part)
        if sample.finish_reason is None:
            return
        if not self._blocks:
            yield from self._text("")
        yield from self._end_text()
        end = ending(sample.finish_reason, sample.stop_reason, self._tokens, self._max_tokens, called=self._calls > 0)
        yield {"type": "message_delta", "delta": end, "usage": used}
        yield {"type": "message_stop"}

    def _parts(self, text: str, last: bool) -> list[str | ToolCall]:
        if self._reader is None:
            return [text] if text else []
        return [*self._reader.add(text), *(self._reader.end() if last else ())]

    def _text(self, text: str) -> Iterator[Event]:
        if not self._in_text:
            self._in_text = True
            yield self._begin(text_block(""))
        if text:
            yield self._delta({"type": "text_delta", "text": text})

    def _end_text(self) -> Iterator[Event]:
        if self._in_text:
            self._in_text = False
            yield self._end()

    def _call(self, call: ToolCall) -> Iterator[Event]:
        assert self._tools is not None
        yield from self._end_text()
        block = call_block(call, self._tools, self._id, self._calls)
        self._calls += 1
        yield self._begin({**block, "input": {}})
        yield self._delta({"type": "input_json_delta", "partial_json": json.dumps(block["input"])})
        yield self._end()

    def _begin(self, block: dict[str, Any]) -> Event:
        self._blocks += 1
        return {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}

    def _delta(self, delta: dict[str, str]) -> Event:
        return {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}

    def _end(self) -> Event:
        return {"type": "content_block_stop", "index": self._blocks - 1}
