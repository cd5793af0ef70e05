"""Against the types of the anthropic package."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from pybatch.api.outcomes import Answer, Sample
from pybatch.api.protocols.anthropic_events import MessageEvents
from pybatch.api.protocols.anthropic_responses import message_response
from pybatch.api.protocols.tool_calls.json_calls import HERMES
from pybatch.api.protocols.tool_calls.use import ToolUse
from pybatch.engine import CompletionOutput, RequestOutput
from pybatch.engine.metrics import RequestMetrics

EVENT: Any = TypeAdapter(RawMessageStreamEvent)


def delta(text: str, tokens: int, finish_reason: Any = None, stop: str | None = None) -> RequestOutput:
    sample = CompletionOutput(0, text, [5] * tokens, None, None, finish_reason, stop)
    metrics = RequestMetrics(arrival_time=0.0, num_prompt_tokens=20)
    finished = finish_reason is not None
    return RequestOutput("0", None, [1] * 20, None, [sample], finished, metrics, num_cached_tokens=16)


def events(*outputs: RequestOutput, tools: ToolUse | None = None) -> list[Any]:
    message = MessageEvents({"max_tokens": 8}, id="x", model="m", tools=tools)
    found = [event for output in outputs for event in message.of(output)]
    for event in found:
        if event["type"] != "ping":
            assert EVENT.validate_python(event).model_dump(exclude_unset=True) == event
    return found


def test_a_message_comes_in_anthropics_order() -> None:
    found = events(delta("One", 1), delta("", 1), delta(" two", 2), delta("", 1, "stop", "END"))
    assert [event["type"] for event in found] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "content_block_delta"),
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


def added_up(found: list[Any]) -> Message:
    """As the anthropic client does."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    for event in found:
        if event["type"] not in ("ping", "message_stop"):
            message = accumulate_event(event=EVENT.validate_python(event), current_snapshot=message, json_bufs=buffers)
    assert isinstance(message, Message)
    return message


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": [1, 2]}}\n</tool_call>'
OTHER = CALL.replace("Oslo", "Rome")
UNKNOWN = CALL.replace("weather", "whether")


@pytest.mark.parametrize(
    ("text", "kinds", "reason"),
    [
        ("It rains.", ["text"], "end_turn"),
        ("", ["text"], "end_turn"),
        (CALL, ["tool_use"], "tool_use"),
        (f"I look.\n{CALL}\n{OTHER}", ["text", "tool_use", "tool_use"], "tool_use"),
        (f"{CALL} And {OTHER} then.", ["tool_use", "text", "tool_use", "text"], "tool_use"),
        (UNKNOWN, ["text"], "end_turn"),
        (CALL[:30], ["text"], "end_turn"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_calls_are_blocks_and_pieces_add_up_to_the_whole(text: str, kinds: list[str], reason: str, size: int) -> None:
    tools = ToolUse(HERMES, {"weather": {"name": "weather"}}, {}, None, "")
    pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
    outputs = [*(delta(piece, 1) for piece in pieces), delta("", 1, "stop")]
    streamed = added_up(events(*outputs, tools=tools))
    answer = Answer(20, (Sample(text, len(outputs), "stop"),))
    body = message_response({"max_tokens": 8}, answer, id="x", model="m", cached_tokens=16, tools=tools)
    whole = Message.model_validate(body, strict=True)
    assert streamed.to_dict(exclude_none=True) == whole.to_dict(exclude_none=True)
    assert [block.type for block in whole.content] == kinds
    assert whole.stop_reason == reason
    calls = [block for block in whole.content if block.type == "tool_use"]
    assert len({call.id for call in calls}) == len(calls)
    for call, city in zip(calls, ("Oslo", "Rome"), strict=False):
        assert call.id.startswith("toolu_")
        assert (call.name, call.input) == ("weather", {"city": city, "days": [1, 2]})
