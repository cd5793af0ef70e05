from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import Server

from pybatch.model.text.tokenizer import Tokenizer

HELLO = [{"role": "user", "content": "Héllo"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_model)


def post(server: Server, path: str, **body: Any) -> Any:
    return httpx.post(server.url + path, json=body).json()


def test_a_text_s_tokens_and_back(server: Server, tokenizer: Tokenizer) -> None:
    text = "Héllo <|end|>"
    got = post(server, "/tokenize", model="tiny", prompt=text)
    assert got == {"count": 8, "max_model_len": 512, "tokens": tokenizer.encode(text), "token_strs": None}
    strings = post(server, "/tokenize", prompt=text, return_token_strs=True, add_special_tokens=False)["token_strs"]
    assert strings == ["H", "Ã", "©", "l", "l", "o", "Ġ", "<|end|>"]
    assert post(server, "/detokenize", model="tiny", tokens=got["tokens"]) == {"prompt": text}
    assert post(server, "/detokenize", tokens=[]) == {"prompt": ""}


def test_a_chat_s_tokens(server: Server, tokenizer: Tokenizer) -> None:
    for options in ({}, {"add_generation_prompt": False}):
        got = post(server, "/tokenize", messages=HELLO, **options)
        assert got["tokens"] == tokenizer.encode_chat(HELLO, **options)[1]
    begun = [*HELLO, {"role": "assistant", "content": "So"}]
    got = post(server, "/tokenize", messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert post(server, "/detokenize", tokens=got["tokens"])["prompt"].endswith("<|role|>assistant: So")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a" * (1 << 20) + "b"}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"messages": HELLO, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ("/tokenize", {"messages": HELLO, "chat_template_kwargs": {"conversation": 1, "self": 2}}, None),
        ("/tokenize", {"prompt": "a", "promt": "b"}, "promt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, True]}, "tokens"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
    ],
)
def test_bad_values_name_their_parameter(server: Server, path: str, body: dict[str, Any], param: str | None) -> None:
    response = httpx.post(server.url + path, json=body)
    assert response.status_code < 500
    if param is not None:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


def test_another_model_is_not_found(server: Server) -> None:
    assert httpx.post(f"{server.url}/tokenize", json={"model": "other", "prompt": "a"}).status_code == 404
