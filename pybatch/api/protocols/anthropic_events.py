"""The events of Anthropic's streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pybatch.api.protocols.anthropic_responses import ending, message_start, usage
from pybatch.engine import RequestOutput

Event = dict[str, Any]
"""Its name is its type."""


class MessageEvents:
    """A message as events, of which the text and the ending are those of message_response.

    body: that message_request has taken. id: without a prefix. model: the name to report.
    """

    def __init__(self, body: Mapping[str, Any], *, id: str, model: str) -> None:
        self._max_tokens = body["max_tokens"]
        self._message = message_start(id, model)
        self._tokens = 0
        self._started = False

    def of(self, output: RequestOutput) -> Iterator[Event]:
        """Of the next output of a stream of deltas. The message is complete when that is finished."""
        (sample,) = output.outputs
        self._tokens += len(sample.token_ids)
        used = usage(len(output.prompt_token_ids), self._tokens, output.num_cached_tokens)
        if not self._started:
            self._started = True
            yield {"type": "message_start", "message": {**self._message, "usage": used}}
            yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
            yield {"type": "ping"}
        if sample.text:
            yield {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": sample.text}}
        if sample.finish_reason is not None:
            yield {"type": "content_block_stop", "index": 0}
            end = ending(sample.finish_reason, sample.stop_reason, self._tokens, self._max_tokens)
            yield {"type": "message_delta", "delta": end, "usage": used}
            yield {"type": "message_stop"}
