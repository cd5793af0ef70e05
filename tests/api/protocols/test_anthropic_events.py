"""Against the types of the anthropic package."""

from __future__ import annotations

from typing import Any

from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from pybatch.api.protocols.anthropic_events import MessageEvents
from pybatch.engine import CompletionOutput, RequestOutput
from pybatch.engine.metrics import RequestMetrics

EVENT: Any = TypeAdapter(RawMessageStreamEvent)


def delta(text: str, tokens: int, finish_reason: Any = None, stop: str | None = None) -> RequestOutput:
    sample = CompletionOutput(0, text, [5] * tokens, None, None, finish_reason, stop)
    metrics = RequestMetrics(arrival_time=0.0, num_prompt_tokens=20)
    finished = finish_reason is not None
    return RequestOutput("0", None, [1] * 20, None, [sample], finished, metrics, num_cached_tokens=16)


def events(*outputs: RequestOutput) -> list[Any]:
    message = MessageEvents({"max_tokens": 8}, id="x", model="m")
    found = [event for output in outputs for event in message.of(output)]
    for event in found:
        if event["type"] != "ping":
            assert EVENT.validate_python(event).model_dump(exclude_unset=True) == event
    return found


def test_a_message_comes_in_anthropics_order() -> None:
    found = events(delta("One", 1), delta("", 1), delta(" two", 2), delta("", 1, "stop", "END"))
    assert [event["type"] for event in found] == [
        *("message_start", "content_block_start", "ping", "content_block_delta", "content_block_delta"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"] == ["One", " two"]
    start, end = found[0]["message"], found[-2]
    assert (start["id"], start["model"], start["content"], start["stop_reason"]) == ("msg_x", "m", [], None)
    used = {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 16}
    assert start["usage"] == {**used, "output_tokens": 1}
    assert end["usage"] == {**used, "output_tokens": 5}
    assert end["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


def test_the_limit_counts_the_tokens_of_all_pieces() -> None:
    assert events(delta("a", 5), delta("b", 3, "length"))[-2]["delta"]["stop_reason"] == "max_tokens"
    full = events(delta("a", 5), delta("b", 2, "length"))
    assert full[-2]["delta"]["stop_reason"] == "model_context_window_exceeded"
