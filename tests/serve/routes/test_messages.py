"""Messages with the `anthropic` client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from live_server import Server

import pybatch

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
# The client no longer has an argument for the temperature; the API still takes it.
GREEDY: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "extra_body": {"temperature": 0}}
LONG = {**GREEDY, "max_tokens": 300}


@pytest.fixture(scope="module")
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def text_of(message: anthropic.types.Message) -> str:
    (block,) = message.content
    assert block.type == "text"
    return block.text


def test_a_message_is_the_model_s(client: anthropic.Anthropic, tiny_model: Path) -> None:
    got = client.messages.create(**GREEDY, system="Be brief.", messages=HELLO)
    llm = pybatch.LLM(tiny_model, threads=1, num_kv_blocks=64)
    params = pybatch.SamplingParams(temperature=0, max_tokens=12)
    (expected,) = llm.chat([{"role": "system", "content": "Be brief."}, *HELLO], params, use_tqdm=False)
    assert text_of(got) == expected.outputs[0].text
    assert (got.model, got.role, got.stop_reason, got.stop_sequence) == ("tiny", "assistant", "max_tokens", None)
    assert got.id.startswith("msg_")
    cached = got.usage.cache_read_input_tokens
    assert cached is not None
    assert got.usage.input_tokens + cached == len(expected.prompt_token_ids)
    assert got.usage.output_tokens == 12
    assert got._request_id is not None
    assert got._request_id.startswith("req_")


def test_a_stream_adds_up_to_the_whole_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**LONG, messages=HELLO)
    with client.messages.stream(**LONG, messages=HELLO) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 1
    told = {"id", "usage"}
    assert final.model_dump(exclude=told | {"content"}) == whole.model_dump(exclude=told | {"content"})
    assert text_of(final) == text_of(whole)
    assert final.usage.output_tokens == whole.usage.output_tokens
    total = [used.input_tokens + (used.cache_read_input_tokens or 0) for used in (final.usage, whole.usage)]
    assert total[0] == total[1]


def test_the_asynchronous_client_streams_text(server: Server, client: anthropic.Anthropic) -> None:
    async def run() -> list[str]:
        async with (
            anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client,
            client.messages.stream(**LONG, messages=HELLO) as stream,
        ):
            return [text async for text in stream.text_stream]

    pieces = asyncio.run(run())
    assert len(pieces) > 1
    assert "".join(pieces) == text_of(client.messages.create(**LONG, messages=HELLO))


def test_events_have_names(server: Server) -> None:
    body = {"model": "tiny", "max_tokens": 12, "messages": HELLO, "stream": True}
    headers = {"x-api-key": "none", "anthropic-version": "2023-06-01", "anthropic-beta": "some-beta"}
    response = httpx.post(f"{server.url}/v1/messages", json=body, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [lines.split("\n") for lines in response.text.rstrip("\n").split("\n\n")]
    assert [name for name, _ in events[:3]] == ["event: message_start", "event: ping", "event: content_block_start"]
    for name, data in events:
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")


def test_a_stop_sequence_ends_a_message_and_is_named(client: anthropic.Anthropic) -> None:
    text = text_of(client.messages.create(**GREEDY, messages=HELLO))
    stop = text[3:5]
    got = client.messages.create(**GREEDY, messages=HELLO, stop_sequences=[stop])
    assert (got.stop_reason, got.stop_sequence) == ("stop_sequence", stop)
    assert text_of(got) == text[: text.index(stop)]
    with client.messages.stream(**GREEDY, messages=HELLO, stop_sequences=[stop]) as stream:
        streamed = stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence, text_of(streamed)) == ("stop_sequence", stop, text_of(got))


def test_a_last_turn_of_the_assistant_is_gone_on_with(client: anthropic.Anthropic) -> None:
    text = text_of(client.messages.create(**GREEDY, messages=HELLO))
    letters = next(count for count in range(1, 12) if not text[: count + 1].isascii())  # each is one token
    begun = [*HELLO, {"role": "assistant", "content": text[:letters]}]
    rest = text_of(client.messages.create(**{**GREEDY, "max_tokens": 12 - letters}, messages=begun))
    assert text[:letters] + rest == text


def test_a_prompt_seen_before_is_read_from_the_cache(client: anthropic.Anthropic) -> None:
    long: list[Any] = [{"role": "user", "content": "A prompt that is longer than some blocks of the cache. " * 3}]
    first = client.messages.create(**GREEDY, messages=long).usage
    with client.messages.stream(**GREEDY, messages=long) as stream:
        second = stream.get_final_message().usage
    new, seen = first.cache_read_input_tokens, second.cache_read_input_tokens
    assert new is not None
    assert seen is not None
    assert seen > new + 100
    assert second.input_tokens + seen == first.input_tokens + new


def test_tokens_are_counted_as_messages_use_them(client: anthropic.Anthropic) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Bye"}]
    used = client.messages.create(**GREEDY, system="Be brief.", messages=messages).usage
    counted = client.messages.count_tokens(model="tiny", system="Be brief.", messages=messages)
    assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
    too_long = client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "a" * 500}])
    assert too_long.input_tokens > 512
    with pytest.raises(anthropic.BadRequestError, match="are at least"):
        client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "a" * 100_000}])


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_a_typed_exception(client: anthropic.Anthropic, stream: bool) -> None:
    def ask(**changes: Any) -> Any:
        return client.messages.create(**{**GREEDY, "messages": HELLO, "stream": stream, **changes})

    with pytest.raises(anthropic.NotFoundError, match="model: expected 'tiny', got 'other'") as not_found:
        ask(model="other")
    assert not_found.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="temperature: expected a number from 0 to 1") as bad:
        ask(extra_body={"temperature": 2})
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id == bad.value.body["request_id"]  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match="max_model_len = 512"):
        ask(messages=[{"role": "user", "content": "a" * 600}])


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/nowhere", 404, "not_found_error"),
        ("POST", "/v1/messages", 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", 400, "invalid_request_error"),
    ],
)
def test_errors_have_anthropic_s_shape(server: Server, method: str, path: str, status: int, kind: str) -> None:
    response = httpx.request(method, server.url + path, content=b"{")
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert response.headers["request-id"] == body["request_id"]


def test_other_paths_have_openai_s_shape(server: Server) -> None:
    for path in ("/v1/messagesx", "/v1/nowhere"):
        response = httpx.post(server.url + path)
        assert response.json()["error"]["code"] == "not_found"
        assert response.headers["x-request-id"].startswith("req_")
