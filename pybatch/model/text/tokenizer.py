"""Text to token ids and back, and chats to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from pybatch.model.checkpoints.files import read_json
from pybatch.model.errors import ModelError
from pybatch.model.text import chat_template as templates
from pybatch.model.text.token_text import TextStream, TokenBytes

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Tokenizer:
    """A tokenizers.Tokenizer (`backend`) with what a model's files say beside it.

    special_tokens: the texts of "bos_token", "eos_token" and so on, as chat templates want them.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self._token_bytes = TokenBytes(backend)
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._id("bos_token")
        eos = self._id("eos_token")
        self.eos_token_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *eos_token_ids]))

    @staticmethod
    def from_directory(directory: Path) -> Tokenizer:
        """Reads tokenizer.json (without one, transformers converts what there is) and tokenizer_config.json."""
        config = read_json(directory / "tokenizer_config.json")
        path = directory / "tokenizer.json"
        backend = tokenizers.Tokenizer.from_file(str(path)) if path.exists() else _converted(directory)
        return Tokenizer(
            backend, special_tokens=_special_tokens(config), chat_template=_chat_template(directory, config)
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of text; with add_special_tokens, with the BOS token (or others) that the model expects."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As encode, for many texts, on all cores."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True, *, after: Sequence[int] = ()) -> str:
        """The text of token ids, where they stand after others. Bytes that are no character come out as U+FFFD."""
        return self.text_stream(skip_special_tokens, after=after).add(ids, last=True)

    def text_stream(self, skip_special_tokens: bool = True, *, after: Sequence[int] = ()) -> TextStream:
        """The same for ids that come a few at a time."""
        return TextStream(self._token_bytes, skip_special_tokens=skip_special_tokens, after=after)

    def token_text(self, token: int) -> str:
        """The text of one token in the midst of others."""
        return self._token_bytes.after(token, token).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a chat. messages: dicts with "role" and "content"; chat_template: instead of the model's own;
        variables: for the template, such as tools or enable_thinking. Raises ValueError if there is no template, or it
        refuses the messages. The prompt holds its special tokens: encode it without adding any."""
        template = chat_template or self.chat_template
        if template is None:
            raise ValueError("chat_template: the model has none, so expected one to be given")
        defaults = {"tools": None, "documents": None, **self.special_tokens}
        return templates.render(
            template, messages, {**defaults, "add_generation_prompt": add_generation_prompt, **variables}
        )

    def _id(self, special: str) -> int | None:
        token = self.special_tokens.get(special)
        found: int | None = None if token is None else self.backend.token_to_id(token)
        return found


def _converted(directory: Path) -> tokenizers.Tokenizer:
    advice = f"{directory}: expected tokenizer.json"
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelError(f"{advice}; for other tokenizer files: pip install transformers sentencepiece") from error
    try:
        backend = AutoTokenizer.from_pretrained(directory).backend_tokenizer
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"{advice}, and transformers could not make one ({type(error).__name__}: {error})") from error
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(f"{advice}, and transformers has only a slow tokenizer for this model")
    return backend


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    # A token is its text, or an object with the text as "content".
    found = {name: config.get(name) for name in SPECIAL_TOKENS}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items() if token}


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = read_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
