"""Limits of keys, with the `openai` client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from local_server import LocalServer, local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.limits import Bucket

HELLO_TOKENS = 27  # in the chat template: each byte one, and special tokens
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def server(llm: AsyncLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    entries = {"requests": "requests_per_minute = 3", "one": "max_concurrent_requests = 1", "free": ""}
    file.write_text("".join(f'[[keys]]\nname = "{name}"\nkey = "{name}"\n{own}\n' for name, own in entries.items()))
    file.chmod(0o600)
    with local_server(llm, api_key_file=file) as server:
        yield server


def client(server: LocalServer, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, max_tokens=options.pop("max_tokens", 2), **options
    )


def test_requests_a_minute(server: LocalServer) -> None:
    limited = client(server, "requests")
    for left in (2, 1, 0):
        headers = ask(limited).headers
        assert headers["x-ratelimit-limit-requests"] == "3"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
        assert 0 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    with pytest.raises(openai.RateLimitError, match="the limit of 3 requests a minute is reached") as error:
        ask(limited)
    assert (error.value.code, error.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    headers = error.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 20
    assert int(headers["retry-after-ms"]) <= 20_000
    assert headers["x-ratelimit-remaining-requests"] == "0"
    limited.models.list()  # reading is free
    ask(client(server, "free"))  # and another key has limits of its own


@pytest.mark.usefixtures("slow_steps")
def test_requests_at_a_time(server: LocalServer) -> None:
    limited = client(server, "one")
    stream = httpx.stream(
        "POST",
        f"{server.url}/v1/chat/completions",
        json={"model": "tiny", "messages": HELLO, "ignore_eos": True, "stream": True, "max_tokens": 400},
        headers={"authorization": "Bearer one"},
    )
    with stream as response:
        lines = response.iter_lines()
        next(lines)
        with pytest.raises(openai.RateLimitError, match="the limit of 1 requests at a time is reached"):
            ask(limited)
    server.expect_idle()
    ask(limited)


@pytest.mark.usefixtures("slow_steps")
def test_a_full_queue_is_503(tiny_model: Path) -> None:
    with (
        closing(AsyncLLM(tiny_model, num_kv_blocks=64, threads=1, max_num_seqs=1, max_queued=1)) as llm,
        local_server(llm) as server,
    ):
        free = client(server, "none")
        running = ask(free, stream=True, max_tokens=400).parse()
        next(iter(running))
        waiting = threading.Thread(target=ask, args=(free,))
        waiting.start()
        while llm.thread.num_waiting == 0:
            time.sleep(0.01)
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="too many requests are waiting: max_queued") as error:
                ask(free, stream=stream)
            assert error.value.status_code == 503
            assert (error.value.code, error.value.type) == ("server_busy", "server_error")
            assert int(error.value.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.BadRequestError, match="prompt: expected 1 to 2 prompts here, got 3"):
            free.completions.create(model="tiny", prompt=["a", "b", "c"])
        running.close()
        waiting.join(60)
        ask(free)
        server.expect_idle()


def test_a_client_that_retries_gets_its_answers(llm: AsyncLLM, tmp_path: Path) -> None:
    """With what the server tells in Retry-After, eight requests of one client at once all come through."""
    with local_server(llm, max_concurrent_requests=2) as server:
        patient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=20)
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(patient))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(answers) == 8


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute(llm: AsyncLLM, stream: bool) -> None:
    """An answer is the same as without a limit, and what it took is charged: the prompt once, and all samples."""
    with local_server(llm) as unlimited:
        expected = ask(client(unlimited, "none"), n=2, seed=5, logprobs=True, max_tokens=20).parse()
    usage = expected.usage
    with local_server(llm, tokens_per_minute=1000) as server:
        tokens = frozen_tokens(server)
        if stream:
            assert list(ask(client(server, "none"), n=2, seed=5, max_tokens=20, stream=True).parse())
        else:
            assert ask(client(server, "none"), n=2, seed=5, logprobs=True, max_tokens=20).parse().choices == (
                expected.choices
            )
        server.expect_idle()
        assert tokens.remaining == 1000 - usage.total_tokens


def test_overdrawn_tokens_have_to_fill_again(llm: AsyncLLM) -> None:
    with local_server(llm, tokens_per_minute=10) as server:
        free = client(server, "none")
        headers = ask(free, max_tokens=30).headers
        assert headers["x-ratelimit-limit-tokens"] == "10"
        with pytest.raises(openai.RateLimitError, match="the limit of 10 tokens a minute is reached") as error:
            ask(free)
        headers = error.value.response.headers
        assert int(headers["retry-after"]) > 60
        assert headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.usefixtures("slow_steps")
def test_a_client_that_goes_is_charged_for_what_was_computed(llm: AsyncLLM) -> None:
    """Of a whole answer too, of which nothing was sent."""
    with local_server(llm, tokens_per_minute=1000) as server:
        tokens = frozen_tokens(server)
        body = {"model": "tiny", "messages": HELLO, "ignore_eos": True, "max_tokens": 450}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=0.5)
        server.expect_idle()
        assert HELLO_TOKENS + 5 < 1000 - tokens.remaining < HELLO_TOKENS + 440


def test_a_refused_prompt_is_named_as_without_a_limit(llm: AsyncLLM) -> None:
    with local_server(llm, tokens_per_minute=100_000) as server:
        with pytest.raises(openai.BadRequestError) as error:
            client(server, "none").completions.create(model="tiny", prompt="a" * 2000)
        assert error.value.param == "prompt"


def frozen_tokens(server: LocalServer) -> Bucket:
    """The bucket of all requests, where there are no keys; it does not fill."""
    bucket = Bucket(1000, clock=lambda: 0.0)
    server.server.app.state.accounts.everyone.tokens = bucket
    return bucket
