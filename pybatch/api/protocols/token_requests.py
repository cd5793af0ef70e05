"""Bodies of vLLM's requests for the tokens of a text or a chat, and the text of tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Required, TypedDict

from pybatch.api.inputs import Conversation, Message, is_token_ids
from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type, flag
from pybatch.api.protocols.messages import expect_messages, expect_unicode
from pybatch.api.protocols.openai_requests import template_options
from pybatch.api.protocols.request_error import RequestError

LONGEST = 1 << 20  # characters; tokenising takes some 150 bytes for each


class TokenizeFields(TypedDict, total=False):
    """Of a body for /tokenize: either prompt or messages."""

    model: str | None
    prompt: str | None
    messages: list[Message] | None
    add_special_tokens: bool | None
    return_token_strs: bool | None
    # with messages
    tools: list[dict[str, Any]] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None


class DetokenizeFields(TypedDict, total=False):
    """Of a body for /detokenize."""

    model: str | None
    tokens: Required[list[int]]


TOKENIZE_ASKING_NOTHING: dict[str, Collection[Any]] = {"chat_template": (), "mm_processor_kwargs": ({},)}
CHAT_ONLY = ("tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs")


def tokenize_request(body: Any) -> str | Conversation:
    """What to tokenize. Raises RequestError."""
    expect_fields(body, TokenizeFields.__annotations__.keys(), TOKENIZE_ASKING_NOTHING)
    flag(body, "return_token_strs")
    if body.get("messages") is None:
        prompt: str = expect_type("prompt", expect_given(body, "prompt"), str, "text")
        for name in CHAT_ONLY:
            if body.get(name) is not None:
                raise RequestError(f"{name}: expected messages with it", "invalid_value", name)
        expect_unicode("prompt", prompt)
        expect_length("prompt", len(prompt))
        flag(body, "add_special_tokens")
        return prompt
    if body.get("prompt") is not None:
        raise RequestError("prompt: expected either it or messages, got both", "invalid_value", "prompt")
    if flag(body, "add_special_tokens"):
        said = "add_special_tokens: not supported here with messages; expected false, since their template has them"
        raise RequestError(said, "unsupported_parameter", "add_special_tokens")
    messages = expect_messages(body["messages"])
    expect_length("messages", sum(len(str(message.get("content"))) for message in messages))
    return Conversation(messages, template_options(body))


def expect_length(name: str, characters: int) -> None:
    if characters > LONGEST:
        raise RequestError(
            f"{name}: expected at most {LONGEST:,} characters, got {characters:,}", "invalid_value", name
        )


def detokenize_request(body: Any, vocab_size: int) -> list[int]:
    """Token ids. Raises RequestError."""
    expect_fields(body, DetokenizeFields.__annotations__.keys(), {})
    tokens: list[int] = expect_type("tokens", expect_given(body, "tokens"), list, "a list of token ids")
    if not is_token_ids(tokens):
        raise RequestError("tokens: expected a list of token ids", "invalid_type", "tokens")
    for token in tokens:
        if not 0 <= token < vocab_size:
            said = f"tokens: token id {token} is not in the vocabulary of {vocab_size}"
            raise RequestError(said, "invalid_value", "tokens")
    return tokens


def tokenized(tokens: list[int], texts: list[str] | None, max_model_len: int) -> dict[str, Any]:
    """The response for /tokenize. texts: of the tokens, as the vocabulary spells them, if they are asked for."""
    return {"count": len(tokens), "max_model_len": max_model_len, "tokens": tokens, "token_strs": texts}
