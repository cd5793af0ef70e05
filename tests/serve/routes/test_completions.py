"""Completions with the `openai` client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import Server
from openai_streams import joined, post, post_streamed

from pybatch import LLM, SamplingParams

PROMPT = "Zoë says"
LONG = "The quick brown fox jumps over the lazy dog, and then it does so again."


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return f"{server.url}/v1/completions"


def ids(text: str) -> list[int]:
    """The tiny model's: bytes, in the order of their letters."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ((letters, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return [2 + alphabet.index(letter) for letter in letters]


@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"prompt": PROMPT, "max_tokens": 30},
        {"prompt": ids(PROMPT), "max_tokens": 30, "n": 2, "best_of": 2},
        {"prompt": [PROMPT, "B", "C" * 40], "max_tokens": 12, "n": 3},
        {"prompt": [PROMPT, "B"], "max_tokens": 12, "n": 2, "best_of": 3, "use_beam_search": True},
        {"prompt": [ids(PROMPT), [67, 0, 68]], "max_tokens": 12, "stop": ["*"]},
        {"prompt": PROMPT, "max_tokens": 0, "n": 2},
    ],
)
def test_a_stream_is_the_whole_answer_in_pieces(
    url: str, options: dict[str, Any], echo: bool, logprobs: int | None
) -> None:
    body = {"model": "tiny", "seed": 3, "echo": echo, "logprobs": logprobs, **options}
    if options["max_tokens"] == 0 and not echo:
        assert httpx.post(url, json=body).json()["error"]["param"] == "max_tokens"
        return
    whole = post(url, body)
    chunks = post_streamed(url, {**body, "stream_options": {"include_usage": True}})
    assert joined(chunks) == whole["choices"]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [chunks[-1]["usage"][name] for name in names] == [whole["usage"][name] for name in names]
    prompts = [options["prompt"]] if isinstance(options["prompt"], str | int) else options["prompt"]
    samples = options.get("n", 1)
    if isinstance(prompts[0], int):
        prompts = [prompts]
    assert len(whole["choices"]) == samples * len(prompts)
    for choice in whole["choices"]:
        prompt = prompts[choice["index"] // samples]
        text = prompt if isinstance(prompt, str) else {tuple(ids(PROMPT)): PROMPT}.get(tuple(prompt), "bc")
        if echo:
            assert choice["text"].startswith(text)
        if options["max_tokens"] == 0:
            assert (choice["text"], choice["finish_reason"]) == (text, "length")
            assert whole["usage"]["completion_tokens"] == 0


def test_an_echo_has_the_prompt_s_log_probabilities_and_places_in_the_text(url: str) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 6, "logprobs": 1}
    plain, echoed = post(url, body)["choices"][0], post(url, {**body, "echo": True})["choices"][0]
    prompt = post(url, {**body, "prompt_logprobs": 1})["choices"][0]["prompt_logprobs"]
    assert echoed["text"] == PROMPT + plain["text"]
    count = len(PROMPT.encode())
    found = echoed["logprobs"]
    assert len(found["tokens"]) == count + 6
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    at_prompt = [position[str(token)]["logprob"] for token, position in zip(ids(PROMPT)[1:], prompt[1:], strict=True)]
    assert found["token_logprobs"][1:count] == at_prompt
    assert found["token_logprobs"][count:] == plain["logprobs"]["token_logprobs"]
    shifted = [offset + len(PROMPT) for offset in plain["logprobs"]["text_offset"]]
    assert found["text_offset"] == [0, 1, 2, 2, 3, 4, 5, 6, 7, *shifted]


def test_special_tokens_take_no_place_in_a_text_without_them(url: str) -> None:
    body = {"model": "tiny", "prompt": [1, *ids("ab"), 0, *ids("c")], "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = post(url, body)["choices"]
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["<|role|>", "a", "b", "<|end|>", "c"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 2]
    (choice,) = post(url, {**body, "skip_special_tokens": False})["choices"]
    assert choice["text"] == "<|role|>ab<|end|>c"
    assert choice["logprobs"]["text_offset"] == [0, 8, 9, 10, 17]


@pytest.mark.parametrize(
    "policy",
    [
        {"type": "streaming_llm", "sinks": 4, "window": 20},
        {"type": "snapkv", "budget": 16, "observed": 8},
        {"type": "heavy_hitters", "heavy": 16, "recent": 16},
    ],
    ids=lambda policy: str(policy["type"]),
)
def test_a_kv_policy_is_a_field_like_any_other(client: openai.OpenAI, tiny_model: Path, policy: dict[str, Any]) -> None:
    params: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "logprobs": 1}
    asked = {"model": "tiny", "prompt": LONG, **params}
    (found,) = client.completions.create(**asked, extra_body={"kv_policy": policy}).choices
    (dense,) = client.completions.create(**asked).choices
    llm = LLM(tiny_model, num_kv_blocks=64)
    (expected,) = llm.generate(LONG, SamplingParams(**params, kv_policy=policy))[0].outputs
    assert found.text == expected.text
    assert found.logprobs is not None
    assert dense.logprobs is not None
    assert expected.logprobs is not None
    told = [each[token].logprob for each, token in zip(expected.logprobs, expected.token_ids, strict=True)]
    assert found.logprobs.token_logprobs == told
    assert found.logprobs.token_logprobs != dense.logprobs.token_logprobs
    text = "".join(
        chunk.choices[0].text
        for chunk in client.completions.create(**asked, stream=True, extra_body={"kv_policy": policy})
    )
    assert text == found.text


def test_a_kv_policy_that_is_none_is_refused_by_name(url: str) -> None:
    for policy, says in (
        ({"type": "h2o"}, "expected a type of 'streaming_llm', 'snapkv', 'heavy_hitters', got 'h2o'"),
        ({"type": "snapkv", "pooling": 2}, "SnapKV: pooling: expected an odd number, got 2"),
        ("snapkv", "expected None, an object with a type of"),
    ):
        answer = httpx.post(url, json={"model": "tiny", "prompt": LONG, "kv_policy": policy})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "kv_policy")
        assert error["message"].startswith("kv_policy: ")
        assert says in error["message"]
    answer = httpx.post(
        url, json={"model": "tiny", "prompt": LONG, "kv_policy": {"type": "snapkv"}, "use_beam_search": True, "n": 2}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("kv_policy: expected none with use_beam_search")


def test_the_client_s_stream(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": [PROMPT, "Hi"], "seed": 4, "max_tokens": 30}
    whole = client.completions.create(**asked)
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "param", "code"),
    [
        (["Hi", "a" * 600], "prompt[1]", "context_length_exceeded"),
        ([[67], [67, 999]], "prompt[1]", "invalid_request"),
        ("a" * 600, "prompt", "context_length_exceeded"),
        ("", "prompt", "invalid_request"),
        (["a"] * 2049, "prompt", "invalid_value"),
    ],
)
def test_no_prompt_is_answered_if_one_cannot_be(url: str, prompt: Any, param: str, code: str, stream: bool) -> None:
    response = httpx.post(url, json={"model": "tiny", "prompt": prompt, "max_tokens": 2, "stream": stream})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["message"].startswith(f"{param}: ")


def test_a_priority_is_taken(client: openai.OpenAI) -> None:
    got = client.completions.create(model="tiny", prompt="a", max_tokens=1, extra_body={"priority": -5})
    assert got.choices[0].finish_reason == "length"
