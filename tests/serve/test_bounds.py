"""What would keep the engine's thread busy for one request alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from batch_files import chat_row, create, ended, json_lines, lines_of, until
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
TOO_LONG = {"stop": ["x" * 20_000]}


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[LocalServer]:
    with closing(AsyncLLM(tiny_model, threads=1, num_kv_blocks=64)) as llm, local_server(llm) as server:
        yield server


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (CHAT, {"messages": ASKED["messages"] * 20_000}, "messages: expected at most 16,384, got 20,000"),
        (CHAT, {"stop": [f"stop {number}" for number in range(300)]}, "stop: expected at most 256 texts"),
        (CHAT, {"stop": "x" * 100_000}, "stop: expected at most 256 texts"),
        (MESSAGES, {"stop_sequences": ["x" * 9000, "y" * 9000]}, "stop_sequences: expected at most 256 texts"),
        (CHAT, {"bad_words": ["x"] * 300}, "bad_words: expected at most 256 texts"),
        (CHAT, {"stop_token_ids": [5] * 1000}, "stop_token_ids: expected at most the 258 tokens"),
        (CHAT, {"allowed_token_ids": [5] * 1000}, "allowed_token_ids: expected at most the 258 tokens"),
        (CHAT, {"logit_bias": {str(token): 1 for token in range(1000)}}, "logit_bias: expected at most the 258 tokens"),
    ],
)
def test_more_than_the_server_takes_is_refused(server: LocalServer, path: str, fields: Any, named: str) -> None:
    response = httpx.post(server.url + path, json={**ASKED, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(named)


def test_as_much_as_the_server_takes_is_answered(server: LocalServer) -> None:
    texts = [f"{number}" * 20 for number in range(256)]
    fields = {"stop": texts, "bad_words": texts, "logit_bias": {str(token): 1 for token in range(258)}}
    assert httpx.post(server.url + CHAT, json={**ASKED, **fields}, timeout=60).status_code == 200


def test_what_has_ended_keeps_nothing_that_may_be_large(server: LocalServer) -> None:
    assert httpx.post(server.url + CHAT, json={**ASKED, "stop": ["x" * 16_000]}).status_code == 200
    server.expect_idle()
    ended = server.server.app.state.monitoring.http.ended
    assert ended[-1].prompts
    assert ended[-1].params is None


@pytest.mark.parametrize("path", ["/v1/messages/count_tokens", "/tokenize"])
def test_as_many_messages_are_counted_as_are_answered(server: LocalServer, path: str) -> None:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
    response = httpx.post(server.url + path, json={"model": "tiny", "messages": turns * 10_000})
    assert response.status_code == 400
    assert "messages: expected at most 16,384, got 20,000" in response.text


def test_rows_of_batches_may_ask_for_no_more(server: LocalServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    refused = [
        ({"stop": [f"stop {number}" for number in range(300)]}, "stop: expected at most 256 texts"),
        ({"bad_words": ["x"] * 300}, "bad_words: expected at most 256 texts"),
        ({"logit_bias": {str(token): 1 for token in range(1000)}}, "logit_bias: expected at most the 258 tokens"),
        ({"messages": ASKED["messages"] * 20_000}, "messages: expected at most 16,384, got 20,000"),
        ({"n": 129}, "n: expected 1 to 128 here, got 129"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: expected 0 to 20 here, got 21"),
    ]
    rows = [chat_row(number, **fields) for number, (fields, _) in enumerate([*refused, ({}, "")])]
    batch = ended(client, create(client, json_lines(rows)))
    assert [line["custom_id"] for line in lines_of(client, batch.output_file_id)] == [f"row-{len(refused)}"]
    errors = [line["response"]["body"]["error"] for line in lines_of(client, batch.error_file_id)]
    for number, (error, (_, said)) in enumerate(zip(errors, refused, strict=True), 1):
        assert error["message"].startswith(f"line {number}: {said}")

    rows = [{"prompt": "a", "logprobs": -1}, {"prompt": "b", "prompt_logprobs": 50}, {"prompt": "c", "max_tokens": 2}]
    batch = ended(client, create(client, json_lines(rows), extra_body={"mapping": {"params": {"max_tokens": 4}}}))
    errors = [line["error"] for line in lines_of(client, batch.error_file_id)]
    assert errors == [
        "line 1: logprobs: expected 0 to 20 here, got -1",
        "line 2: prompt_logprobs: expected 0 to 20 here, got 50",
    ]
    with pytest.raises(openai.BadRequestError, match="stop: expected at most 256 texts"):
        create(client, json_lines(rows), extra_body={"mapping": {"params": TOO_LONG}})


def test_messages_of_batches_may_ask_for_no_more(server: LocalServer) -> None:
    asked = [{**ASKED, "stop_sequences": TOO_LONG["stop"]}, ASKED]
    requests = [{"custom_id": str(number), "params": params} for number, params in enumerate(asked)]
    url = f"{server.url}{MESSAGES}/batches"
    id = httpx.post(url, json={"requests": requests}).json()["id"]
    until(lambda: httpx.get(f"{url}/{id}").json(), lambda batch: batch["processing_status"] == "ended")
    refused, answered = (json.loads(line)["result"] for line in httpx.get(f"{url}/{id}/results").text.splitlines())
    assert refused["error"]["error"]["message"].startswith("line 1: stop_sequences: expected at most 256 texts")
    assert answered["type"] == "succeeded"
