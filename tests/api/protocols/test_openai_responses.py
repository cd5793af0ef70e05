"""Against the types of the openai package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from pybatch import LLM, SamplingParams
from pybatch.api.outcomes import Answer, Failure, Sample, outcome_of
from pybatch.api.protocols.openai_requests import chat_request, completion_request
from pybatch.api.protocols.openai_responses import chat_completion, error_body, text_completion

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=64, threads=1)


def answers(llm: LLM, asked: Any) -> list[Answer]:
    params = SamplingParams(**{"max_tokens": 4, "ignore_eos": True, **asked.params})
    outputs = llm.generate([render(llm, each) for each in asked.prompts], params)
    outcomes = [outcome_of(output, llm.get_tokenizer()) for output in outputs]
    return [outcome for outcome in outcomes if isinstance(outcome, Answer)]


def render(llm: LLM, prompt: Any) -> Any:
    return prompt if isinstance(prompt, str | list) else llm.get_tokenizer().render_chat(prompt.messages)


def chat(llm: LLM, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": MESSAGES, **more}
    (answer,) = answers(llm, chat_request(body))
    return same(ChatCompletion, chat_completion(body, answer, id="x", created=1_700_000_000, model="m"))


def completion(llm: LLM, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": "Hello", **more}
    made = text_completion(body, answers(llm, completion_request(body)), id="x", created=1_700_000_000, model="m")
    return same(Completion, made)


def same(kind: type[BaseModel], body: dict[str, Any]) -> dict[str, Any]:
    """The body, which the type reads and gives back as it is, with no field that it does not know."""
    read = kind.model_validate(body, strict=True)
    assert read.model_dump(exclude_unset=True) == body
    expect_no_extras(read)
    return body


def expect_no_extras(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra
        for each in value.__dict__.values():
            expect_no_extras(each)
    elif isinstance(value, list):
        for each in value:
            expect_no_extras(each)


def test_a_chat_completion(llm: LLM) -> None:
    body = chat(llm, n=2, seed=1)
    prompt = len(llm.get_tokenizer().encode_chat(MESSAGES)[1])
    assert (body["id"], body["object"], body["created"], body["model"]) == (
        "chatcmpl-x", "chat.completion", 1_700_000_000, "m",
    )  # fmt: skip
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    first = body["choices"][0]
    assert first["message"] == {"role": "assistant", "content": first["message"]["content"], "refusal": None}
    assert (first["finish_reason"], first["logprobs"]) == ("length", None)
    assert body["usage"] == {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}


def test_log_probabilities_of_a_chat(llm: LLM) -> None:
    content = chat(llm, logprobs=True, top_logprobs=3, seed=5)["choices"][0]["logprobs"]["content"]
    assert len(content) == 4
    for at in content:
        top = [each["logprob"] for each in at["top_logprobs"]]
        assert len(top) == 3
        assert top == sorted(top, reverse=True)
        assert top[0] >= at["logprob"]
        assert bytes(at["bytes"]).decode(errors="replace") == at["token"]
    greedy = chat(llm, logprobs=True, top_logprobs=1, temperature=0)["choices"][0]["logprobs"]["content"]
    for at in greedy:
        (first,) = at.pop("top_logprobs")
        assert first == at
    assert [at["top_logprobs"] for at in chat(llm, logprobs=True)["choices"][0]["logprobs"]["content"]] == [[]] * 4


def test_a_completion(llm: LLM) -> None:
    body = completion(llm, temperature=0)
    assert (body["id"], body["object"]) == ("cmpl-x", "text_completion")
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    text = body["choices"][0]["text"]
    assert completion(llm, temperature=0, echo=True)["choices"][0]["text"] == "Hello" + text


def test_several_prompts_are_answered_as_choices_in_their_order(llm: LLM) -> None:
    body = completion(llm, prompt=["Hello", "Bye"], n=2, temperature=0, echo=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    alone = [completion(llm, prompt=prompt, temperature=0)["choices"][0]["text"] for prompt in ("Hello", "Bye")]
    assert [choice["text"] for choice in body["choices"]] == [
        f"Hello{alone[0]}", f"Hello{alone[0]}", f"Bye{alone[1]}", f"Bye{alone[1]}",
    ]  # fmt: skip
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 16, "total_tokens": 24}


def test_log_probabilities_of_a_completion(llm: LLM) -> None:
    logprobs = completion(llm, logprobs=2, seed=3)["choices"][0]["logprobs"]
    assert [len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [4] * 4
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert 1 <= len(top) <= 3
        assert top[token] >= logprob  # of tokens with the same text the likelier one's


def test_a_character_of_several_tokens_has_its_bytes_and_one_place() -> None:
    parts = [("a", None), ("\ufffd", [0xC3]), ("\ufffd", [0xA9]), ("b", None)]
    entries: list[Any] = [{"token_id": 1, "logprob": -0.5, "rank": 1, "decoded_token": text} for text, _ in parts]
    for entry, (_, data) in zip(entries, parts, strict=True):
        entry |= {} if data is None else {"bytes": data}
    answer = Answer(1, (Sample("aéb", 4, "stop", logprobs=[[entry] for entry in entries]),))
    chat_body = chat_completion({"logprobs": True}, answer, id="x", created=1, model="m")
    content = chat_body["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(at["bytes"]) for at in content).decode() == "aéb"
    body = text_completion({"prompt": "p", "logprobs": 0}, [answer], id="x", created=1, model="m")
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1, 2]


def test_the_tokenizer_knows_the_bytes_of_a_part_of_a_character(llm: LLM) -> None:
    logprobs = completion(llm, logprobs=0, prompt="é" * 20, max_tokens=30, seed=1)["choices"][0]["logprobs"]
    assert "\ufffd" in logprobs["tokens"]
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


def test_impossible_tokens_and_those_without_text() -> None:
    never = {"token_id": 7, "logprob": -math.inf, "rank": 9, "decoded_token": None}
    answer = Answer(1, (Sample("", 1, "stop", logprobs=[[never]]),))
    body = {"logprobs": True, "model": "m"}
    made = same(ChatCompletion, chat_completion(body, answer, id="x", created=1, model="m"))
    (at,) = made["choices"][0]["logprobs"]["content"]
    assert (at["token"], at["logprob"]) == ("token_id:7", -9999.0)
    assert made["choices"][0]["finish_reason"] == "stop"


def test_errors_are_told_as_openai_tells_them() -> None:
    assert error_body(Failure("n: no", "invalid_value", "n")) == {
        "error": {"message": "n: no", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
    assert error_body(Failure("x", "server_error"))["error"]["type"] == "server_error"
