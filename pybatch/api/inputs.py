"""What a prompt may be, and how it becomes token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pybatch.api.pairs import FramedText, JoinedTexts

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "user" (system, assistant, tool, ...), "content": text or a list of {"type": "text", "text": ...}}. An
assistant's message may have "tool_calls" (OpenAI's) in place of content."""


@dataclass(frozen=True)
class Conversation:
    """Messages to be put through the chat template; options: further arguments of Tokenizer.encode_chat, such as tools,
    continue_final_message or split_special_tokens."""

    messages: Sequence[Message]
    options: Mapping[str, Any] = field(default_factory=dict)


class TextPrompt(TypedDict):
    """vLLM's name for a prompt that is text."""

    prompt: str


class TokensPrompt(TypedDict):
    """vLLM's name for a prompt that is token ids; prompt: the text to report beside them."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]


def chat_options(
    chat_template: str | None,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A Conversation's options, from what LLM.chat takes."""
    return {
        "chat_template": chat_template,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
        "tools": tools or None,
        **(chat_template_kwargs or {}),
    }


Prompt = str | Sequence[int] | Mapping[str, Any] | Conversation | JoinedTexts | FramedText
"""Text, token ids (a list, an array or a tensor), {"prompt": text} or {"prompt_token_ids": ids} (of both the ids
count), a Conversation, or what Scorer makes of a pair. {"prompt": text, "split_special_tokens": True} is text in which
no special token counts."""

PROMPT_KEYS = {"prompt", "prompt_token_ids", "split_special_tokens"}


def as_list(values: object) -> object:
    """A list of an array, a tensor or a table's column (numpy, torch, pandas, polars, pyarrow); others as they are."""
    for name in ("tolist", "to_list", "to_pylist"):
        method = getattr(values, name, None)
        if callable(method):
            return method()
    return values


def is_token_ids(value: object) -> bool:
    value = as_list(value)
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return False
    return all(issubclass(kind, Integral) and not issubclass(kind, bool) for kind in set(map(type, value)))


def size_of(prompt: Prompt) -> int:
    """About how long it is, to tell how much of a batch's prompts is done: in characters or in token ids."""
    if isinstance(prompt, Mapping | Conversation) or not hasattr(prompt, "__len__"):
        return len(str(prompt))
    return len(prompt)


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> Iterable[Prompt]:
    """A single prompt as a list of one; several as they are, which may be an iterator, an array or a table's column."""
    listed = as_list(prompts)
    if isinstance(listed, str | Mapping | Conversation):
        return [listed]
    if isinstance(listed, bytes) or not isinstance(listed, Iterable) or is_table(listed):
        raise TypeError(f"prompts: expected text, token ids or several of these, got {type(prompts).__name__}")
    if isinstance(listed, Sequence) and listed and is_token_ids(listed):
        return [listed]
    return listed


def is_table(value: object) -> bool:
    """Whether iterating would give the names of its columns."""
    return hasattr(value, "columns")


def is_conversation(prompt: Prompt | Sequence[Message]) -> bool:
    """Whether it is a list of messages."""
    return (
        not isinstance(prompt, str) and isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Mapping)
    )


def as_conversations(messages: Sequence[Message] | Iterable[Sequence[Message]]) -> Iterable[Sequence[Message]]:
    """A single conversation (a list of messages) as a list of one; several as they are."""
    listed = as_list(messages)
    if isinstance(listed, str | bytes | Mapping) or not isinstance(listed, Iterable) or is_table(listed):
        raise TypeError(f"messages: expected a list of messages or of such lists, got {type(messages).__name__}")
    if isinstance(listed, Sequence) and listed and isinstance(listed[0], Mapping):
        return [listed]
    return listed


@dataclass(slots=True)
class Encoded:
    """A prompt's text, where it has one, and its token ids. error: why it has no ids; error_code as RequestOutput's."""

    text: str | None = None
    token_ids: list[int] = field(default_factory=list)
    error: str | None = None
    error_code: str | None = None


def encode(prompts: Sequence[Prompt], tokenizer: Tokenizer | None, limits: Sequence[int | None]) -> list[Encoded]:
    """Token ids for each prompt. Never raises for a prompt: whatever goes wrong with one is that one's error.

    limits: for each prompt the most tokens; a text that cannot come to so few is refused before it is tokenized.
    """
    encoded = [Encoded() for _ in prompts]
    texts: list[tuple[Encoded, str]] = []
    for prompt, each, max_tokens in zip(prompts, encoded, limits, strict=True):
        with fault_of(each):
            each.text = prompt if isinstance(prompt, str) else None
            each.text, ids = read_prompt(prompt, tokenizer, max_tokens)
            if ids is not None:
                each.token_ids = ids
            elif each.text is not None:
                expect_tokenizer(tokenizer).expect_room(each.text, max_tokens)
                texts.append((each, each.text))
    if texts:
        tokenize(texts, expect_tokenizer(tokenizer))
    return encoded


def tokenize(texts: Sequence[tuple[Encoded, str]], tokenizer: Tokenizer) -> None:
    """All at once; if that fails, one at a time, so that each text at fault gets its own error."""
    together = Encoded()
    with fault_of(together):
        ids = tokenizer.encode_batch([text for _, text in texts])  # other threads run meanwhile, unlike in encode
    if together.error is None:
        for (each, _), token_ids in zip(texts, ids, strict=True):
            each.token_ids = token_ids
        return
    for each, text in texts:
        with fault_of(each):
            each.token_ids = tokenizer.encode(text)


@contextmanager
def fault_of(encoded: Encoded, *, but: type[BaseException] = KeyboardInterrupt) -> Iterator[None]:
    """Whatever the block raises becomes the prompt's error: prompts and chat templates come from outside and may fail
    in any way, and a tokenizer that panics raises a BaseException. but: what is no prompt's fault."""
    try:
        yield
    except (KeyboardInterrupt, but):
        raise
    except ValueError as error:
        encoded.error, encoded.error_code = str(error), getattr(error, "code", "invalid_request")
    except BaseException as error:
        encoded.error, encoded.error_code = f"{type(error).__name__}: {error}", "invalid_request"


def read_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, max_tokens: int | None
) -> tuple[str | None, list[int] | None]:
    """The prompt's text and its token ids; None for ids that are yet to be made of the text. Raises ValueError if it is
    not a prompt."""
    text: object = prompt
    ids: object = None
    split_special_tokens = False
    if isinstance(prompt, Conversation):
        messages = plain_messages(prompt.messages)
        return expect_tokenizer(tokenizer).encode_chat(messages, max_tokens=max_tokens, **prompt.options)
    if isinstance(prompt, JoinedTexts | FramedText):
        return None, prompt.token_ids(expect_tokenizer(tokenizer), max_tokens)
    if isinstance(prompt, Mapping):
        if not prompt or prompt.keys() - PROMPT_KEYS:
            raise ValueError(f"prompt: expected the keys 'prompt' or 'prompt_token_ids', got {list(prompt)}")
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        split_special_tokens = bool(prompt.get("split_special_tokens"))
    elif not isinstance(prompt, str):
        text, ids = None, prompt
    if text is not None and not isinstance(text, str):
        raise ValueError(f"prompt: expected text, got {type(text).__name__}")
    if ids is not None:
        listed = as_list(ids)
        if not is_token_ids(listed):
            raise ValueError(f"prompt: expected text or a list of token ids, got {type(ids).__name__}")
        token_ids = [int(each) for each in listed]  # type: ignore[attr-defined]
        for extreme in (min(token_ids, default=0), max(token_ids, default=0)):
            if not -(1 << 31) <= extreme < 1 << 31:  # the engine has the vocabulary's size, and int32 for ids
                raise ValueError(f"prompt: token id {extreme} is not in the vocabulary")
        return text, token_ids
    if text is None:
        raise ValueError("prompt: expected text or a list of token ids, got None")
    tokenizer = expect_tokenizer(tokenizer)
    if split_special_tokens:
        return text, tokenizer.encode(text, split_special_tokens=True, max_tokens=max_tokens)
    return text, None


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    messages = as_list(messages)  # type: ignore[assignment]
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages: expected a list of at least one message, got {messages!r:.80}")
    return [plain_message(message) for message in messages]


def plain_message(message: Message) -> dict[str, Any]:
    """The message as chat templates expect it: its content is one string, the arguments of its tool calls are dicts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"messages: expected {{'role': ..., 'content': ...}}, got {message!r:.80}")
    plain = {**message, "content": plain_content(message)}
    calls = as_list(message.get("tool_calls"))
    if calls:
        if not isinstance(calls, list | tuple):
            raise ValueError(f"messages: expected a list as tool calls, got {calls!r:.80}")
        plain["tool_calls"] = [plain_tool_call(call) for call in calls]
    return plain


def plain_content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list | tuple):
        parts = [part if isinstance(part, str) else text_of_part(part) for part in content]
        return "\n".join(parts)
    if content is None and any(message.get(key) for key in ("tool_calls", "function_call", *REASONING)):
        return ""
    if not isinstance(content, str):
        raise ValueError(f"messages: expected text as content, got {content!r:.80}")
    return content


REASONING = ("reasoning", "reasoning_content")


def text_of_part(part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise ValueError(f"messages: expected {{'type': 'text', 'text': ...}} as parts of content, got {part!r:.80}")
    return text


def plain_tool_call(call: object) -> object:
    """With arguments parsed that are JSON, as OpenAI's are."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"messages: expected {{'function': {{'name': ...}}}} as tool calls, got {call!r:.80}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            return call  # the template gets the text, as the model once wrote it
    return {**call, "function": {**function, "arguments": arguments}}  # type: ignore[dict-item]


def expect_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer. Raises ValueError if there is none."""
    if tokenizer is None:
        raise ValueError("text needs a tokenizer, and the model was loaded without one")
    return tokenizer
