"""Chat completions with the `openai` client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import Server

import pybatch

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


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


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model: expected 'tiny', got 'other'") as error:
        client.chat.completions.create(model="other", messages=HELLO)
    assert error.value.code == "model_not_found"


def test_a_bad_value_names_its_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature: expected a number of at least 0") as error:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    assert (error.value.param, error.value.type) == ("temperature", "invalid_request_error")


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_model_len = 512") as error:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 600}])
    assert error.value.code == "context_length_exceeded"
