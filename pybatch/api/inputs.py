"""What a prompt may be, and how it becomes token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "user" (system, assistant, ...), "content": text or a list of {"type": "text", "text": ...}}."""


@dataclass(frozen=True)
class Conversation:
    """Messages to be put through the chat template; options: further arguments of Tokenizer.apply_chat_template."""

    messages: Sequence[Message]
    options: Mapping[str, Any] = field(default_factory=dict)


Prompt = str | Sequence[int] | Mapping[str, Any] | Conversation
"""Text, token ids, vLLM's {"prompt": text} or {"prompt_token_ids": ids} (of both the ids count), or a Conversation."""


def is_token_ids(value: object) -> bool:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return False
    return all(isinstance(each, Integral) and not isinstance(each, bool) for each in value)


def size_of(prompt: Prompt) -> int:
    """About how long it is, to tell how much of a batch's prompts is done: in characters or in token ids."""
    return len(prompt) if isinstance(prompt, str | list) else len(str(prompt))


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> Iterable[Prompt]:
    """A single prompt as a list of one; several as they are, which may be an iterator."""
    if isinstance(prompts, str | Mapping | Conversation) or (prompts and is_token_ids(prompts)):
        return [prompts]  # type: ignore[list-item]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise TypeError(f"prompts: expected text, token ids or several of these, got {type(prompts).__name__}")
    return prompts  # type: ignore[return-value]


def as_conversations(messages: Sequence[Message] | Iterable[Sequence[Message]]) -> Iterable[Sequence[Message]]:
    """A single conversation (a list of messages) as a list of one; several as they are."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise TypeError(f"messages: expected a list of messages or of such lists, got {type(messages).__name__}")
    if isinstance(messages, Sequence) and messages and isinstance(messages[0], Mapping):
        return [messages]
    return messages  # type: ignore[return-value]


def encode(prompt: Prompt, tokenizer: Tokenizer | None) -> tuple[str | None, list[int]]:
    """The prompt's text, where it has one, and its token ids. ValueError for what is no prompt."""
    text: object = prompt
    ids: object = None
    if isinstance(prompt, Conversation):
        return encode_conversation(prompt, tokenizer)
    if isinstance(prompt, Mapping):
        if not prompt or prompt.keys() - {"prompt", "prompt_token_ids"}:
            raise ValueError(f"prompt: expected the keys 'prompt' or 'prompt_token_ids', got {list(prompt)}")
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    elif not isinstance(prompt, str):
        text, ids = None, prompt
    if text is not None and not isinstance(text, str):
        raise ValueError(f"prompt: expected text, got {type(text).__name__}")
    if ids is not None:
        if not is_token_ids(ids):
            raise ValueError(f"prompt: expected text or a list of token ids, got {type(ids).__name__}")
        return text, [int(each) for each in ids]  # type: ignore[attr-defined]
    if text is None:
        raise ValueError("prompt: expected text or a list of token ids, got None")
    return text, expect_tokenizer(tokenizer).encode(valid_text(text))


def encode_conversation(prompt: Conversation, tokenizer: Tokenizer | None) -> tuple[str, list[int]]:
    messages = prompt.messages
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages: expected a list of at least one message, got {messages!r:.80}")
    plain = [plain_message(message) for message in messages]
    tokenizer = expect_tokenizer(tokenizer)
    try:
        text = tokenizer.apply_chat_template(plain, **prompt.options)
    except ValueError:
        raise
    except Exception as error:  # a template is code that came with the model, and may fail in any way
        raise ValueError(f"chat template: {type(error).__name__}: {error}") from error
    return text, tokenizer.encode(valid_text(text), add_special_tokens=False)  # the template has put them in


def plain_message(message: Message) -> dict[str, Any]:
    """The message with its content as one string, which is what chat templates expect."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages: expected {{'role': ..., 'content': ...}}, got {message!r:.80}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"messages: expected text as content, got {content!r:.80}")
    return {**message, "content": content}


def expect_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise ValueError("text needs a tokenizer, and the model was loaded without one")
    return tokenizer


def valid_text(text: str) -> str:
    """ValueError for text with unpaired surrogates, which is not Unicode."""
    text.encode()
    return text
