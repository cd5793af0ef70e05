"""What would keep the engine's thread busy for one request alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


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
