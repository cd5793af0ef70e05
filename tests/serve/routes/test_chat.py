"""Chat completions with the `openai` client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import Server
from openai_streams import joined, post, post_streamed

import pybatch

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return f"{server.url}/v1/chat/completions"


def test_an_answer_is_the_model_s(client: openai.OpenAI, tiny_model: Path) -> None:
    got = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, max_tokens=12)
    llm = pybatch.LLM(tiny_model, threads=1, num_kv_blocks=64)
    (expected,) = llm.chat(HELLO, pybatch.SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    assert got.choices[0].message.content == expected.outputs[0].text
    assert got.choices[0].finish_reason == "length"
    assert got.usage is not None
    assert got.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert got.usage.completion_tokens == 12
    assert got.model == "tiny"


STOP = {"temperature": 0, "max_tokens": 40, "stop": ["*p", "zz"]}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "max_tokens": 40},
        {"seed": 5, "max_tokens": 60},  # a random model's bytes are mostly parts of characters
        {"seed": 5, "max_tokens": 60, "n": 5},
        {"seed": 6, "max_tokens": 30, "n": 2, "logprobs": True},
        {"seed": 7, "max_tokens": 30, "n": 3, "logprobs": True, "top_logprobs": 4},
        STOP,
        {**STOP, "include_stop_str_in_output": True, "logprobs": True},
        {**STOP, "min_tokens": 20},
        {"seed": 1, "max_tokens": 30, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
        {"seed": 1, "max_tokens": 30, "logit_bias": {"67": 100, "0": -100}, "logprobs": True, "top_logprobs": 0},
        {"seed": 2, "max_completion_tokens": 30, "ignore_eos": True, "skip_special_tokens": False, "top_k": 20},
        {"temperature": 0, "allowed_token_ids": [67, 0], "stop_token_ids": [67], "max_tokens": 5},
    ],
)
def test_a_stream_is_the_whole_answer_in_pieces(url: str, options: dict[str, Any]) -> None:
    body = {"model": "tiny", "messages": HELLO, **options}
    whole = post(url, body)
    chunks = post_streamed(url, {**body, "stream_options": {"include_usage": True}})
    assert joined(chunks) == whole["choices"]
    *before, last = chunks
    assert last["choices"] == []
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][name] for name in names] == [whole["usage"][name] for name in names]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in before)
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_usage_is_told_only_if_it_is_asked_for_and_in_every_chunk_on_request(url: str) -> None:
    body = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 4, "logprobs": True}
    assert not any("usage" in chunk for chunk in post_streamed(url, body))
    chunks = post_streamed(url, {**body, "stream_options": {"continuous_usage_stats": True, "include_usage": True}})
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4


def test_cached_prompt_tokens_are_told(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "A prompt of more than one block of tokens, asked twice."}]
    for _ in range(2):
        got = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert got.usage is not None
    assert got.usage.prompt_tokens_details is not None
    assert 0 < (got.usage.prompt_tokens_details.cached_tokens or 0) < got.usage.prompt_tokens


def test_the_client_s_stream(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "stop": "p"}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 1
    assert "".join(deltas) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert whole.usage is not None
    assert final.usage.total_tokens == whole.usage.total_tokens


def test_many_streams_at_once_are_those_that_come_one_at_a_time(server: Server) -> None:
    count = 32

    async def read(client: openai.AsyncOpenAI, number: int) -> list[Any]:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"{'Tell me more. ' * (number % 5)}Number {number}"}],
            seed=number,
            max_tokens=8 + number,
            logprobs=True,
            stream=True,
        )
        chunks = [chunk async for chunk in stream]
        entries = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs is not None]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return [text, [(each.token, each.logprob) for entry in entries for each in entry.content or ()]]

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            together = await asyncio.gather(*(read(client, number) for number in range(count)))
            assert together == [await read(client, number) for number in range(count)]
            assert len({text for text, _ in together}) == count

    asyncio.run(run())


def test_prompt_logprobs_are_vllm_s(url: str) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 1, "prompt_logprobs": 2}
    got = post(url, body)
    first, *others = got["prompt_logprobs"]
    assert first is None
    assert len(others) == got["usage"]["prompt_tokens"] - 1
    for position in others:
        assert 2 <= len(position) <= 3
        assert all(each.keys() == {"logprob", "rank", "decoded_token"} for each in position.values())
    response = httpx.post(url, json={**body, "stream": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'other'") as error:
        client.chat.completions.create(model="other", messages=HELLO)
    assert error.value.code == "model_not_found"


def test_a_bad_value_names_its_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature: expected a number of at least 0") as error:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    assert (error.value.param, error.value.type) == ("temperature", "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=r"messages: 6.. .*max_model_len = 512") as error:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 600}], stream=stream)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, None),  # which the model's template refuses
        ({"n": 129}, "n"),
        ({"n": 10**30}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"priority": 1 << 40}, "priority"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"allowed_token_ids": [999]}, "allowed_token_ids"),
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens"),
        ({"stop": [""]}, "stop"),
        ({"repetition_penalty": 1e-45}, "repetition_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_sent(
    url: str, changes: dict[str, Any], param: str | None, stream: bool
) -> None:
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "stream": stream, **changes}
    if stream and "prompt_logprobs" in changes:
        return
    response = httpx.post(url, content=json.dumps(body))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


def test_answers_follow_the_response_format(client: openai.OpenAI, url: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 22]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    got = client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        max_tokens=100,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        extra_body={"temperature": 1.0},
    )
    assert got.choices[0].finish_reason in ("stop", "length")
    if got.choices[0].finish_reason == "stop":
        assert json.loads(got.choices[0].message.content or "") in ({"a": 1}, {"a": 22})
    chosen = {"model": "tiny", "messages": HELLO, "guided_choice": ["red", "blue"]}
    assert httpx.post(url, json=chosen).json()["choices"][0]["message"]["content"] in ("red", "blue")
    (streamed,) = joined(post_streamed(url, {**chosen, "seed": 3}))
    assert streamed["message"]["content"] in ("red", "blue")


def test_a_schema_that_cannot_be_compiled_is_a_bad_request(url: str) -> None:
    remote = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "https://a.b/c"}}}
    for name, constraint, says in (
        ("structured_outputs", {"regex": "(("}, "unclosed group"),
        ("guided_regex", "((", "unclosed group"),
        ("response_format", remote, "https://a.b/c"),
    ):
        response = httpx.post(url, json={"model": "tiny", "messages": HELLO, name: constraint})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["message"].partition(":")[0]) == (name, name)
        assert says in error["message"]


def test_what_is_not_served_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="POST /v1/responses: Not Found"):
        client.responses.create(model="tiny", input="Hello")
