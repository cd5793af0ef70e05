"""What the guard refuses is what the `anthropic` client expects."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from local_server import local_server

from pybatch.api.async_llm import AsyncLLM

HELLO: Any = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
LONG: Any = {**HELLO, "messages": [{"role": "user", "content": "a" * 2000}]}


def test_refusals_are_typed_exceptions(llm: AsyncLLM) -> None:
    with local_server(llm, api_key=["sk-right"], max_body_size=1000, requests_per_minute=2) as server:

        def ask(key: str = "sk-right", **body: Any) -> anthropic.types.Message:
            client = anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)
            message: anthropic.types.Message = client.messages.create(**body)
            return message

        with pytest.raises(anthropic.AuthenticationError) as unknown:
            ask("sk-wrong", **HELLO)
        assert ask(**HELLO).content
        with pytest.raises(anthropic.ContentTooLargeError) as large:
            ask(**LONG)
        ask(**HELLO)
        with pytest.raises(anthropic.RateLimitError) as often:
            ask(**HELLO)
        assert int(often.value.response.headers["retry-after"]) >= 1

    kinds = [caught.value.type for caught in (unknown, large, often)]
    assert kinds == ["authentication_error", "request_too_large", "rate_limit_error"]
    for caught in (unknown, large, often):
        assert caught.value.request_id is not None
        assert caught.value.request_id == caught.value.body["request_id"]  # type: ignore[index]
