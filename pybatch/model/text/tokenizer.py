"""Text to token ids and back, and chats to prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import tokenizers

from pybatch.model.errors import PromptTooLongError
from pybatch.model.text import chat_template as templates
from pybatch.model.text.control_tokens import ControlTokens
from pybatch.model.text.guarded import guarded
from pybatch.model.text.prompt_length import LengthBound, length_bound
from pybatch.model.text.token_text import TextStream, TokenBytes, special_tokens_of
from pybatch.model.text.tokenizer_files import read_tokenizer

Messages = Sequence[Mapping[str, Any]]


class TokenIds(dict[str, Any]):
    """What calling a tokenizer gives: "input_ids" and "attention_mask", as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Tokenizer:
    """A tokenizers.Tokenizer (`backend`) with what a model's files say beside it.

    Methods that transformers' tokenizers have too are called as they are there.

    special_tokens: the texts of "bos_token", "eos_token" and so on, as chat templates want them.
    chat_template: the usual one; named_chat_templates: others, of which "tool_use" is taken where there are tools.
    eos_token_ids: further ids that end an answer.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        named_chat_templates: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens or {})
        self.chat_template = chat_template
        self.named_chat_templates = dict(named_chat_templates or {})
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.bos_token, self.bos_token_id = self._named("bos_token")
        self.eos_token, self.eos_token_id = self._named("eos_token")
        self.pad_token, self.pad_token_id = self._named("pad_token")
        self.unk_token, self.unk_token_id = self._named("unk_token")
        eos = () if self.eos_token_id is None else (self.eos_token_id,)
        self.eos_token_ids = tuple(dict.fromkeys([*eos, *eos_token_ids]))
        self._token_bytes = TokenBytes(backend)

    @staticmethod
    def from_directory(directory: Path) -> Tokenizer:
        """Reads tokenizer.json (without one, transformers converts what there is) and the files beside it. Raises
        ModelError if they are missing or damaged."""
        files = read_tokenizer(directory)
        return Tokenizer(
            files.backend,
            special_tokens=files.special_tokens,
            chat_template=files.chat_templates.get("default"),
            named_chat_templates=files.chat_templates,
        )

    # ---- text to ids ----

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        split_special_tokens: bool = False,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The token ids of a text.

        add_special_tokens: with the BOS token (or others) that the model expects.
        split_special_tokens: what reads like a special token is ordinary text.
        max_tokens: refuse a text that cannot come to so few tokens by its length alone, before it is tokenized, which
          takes some 150 bytes of memory a character.

        Raises ValueError for text that is not Unicode (unpaired surrogates), is too long, or makes the backend fail.
        """
        self.expect_room(text, max_tokens)
        backend = self._control_tokens.backend if split_special_tokens else self.backend
        ids: list[int] = guarded(lambda: backend.encode(text, add_special_tokens=add_special_tokens)).ids
        return ids

    def encode_pair(self, first: str, second: str) -> list[int]:
        """The token ids of two texts, joined as the model expects it. Raises ValueError if the backend fails."""
        ids: list[int] = guarded(lambda: self.backend.encode(first, second)).ids
        return ids

    def encode_batch(self, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As encode, for many texts, on all cores."""
        encodings = guarded(lambda: self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens))
        return [encoding.ids for encoding in encodings]

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, *, split_special_tokens: bool = False
    ) -> TokenIds:
        """The ids of one text or several, with a mask of ones."""
        if isinstance(text, str):
            ids: Any = self.encode(text, add_special_tokens, split_special_tokens=split_special_tokens)
            return TokenIds(input_ids=ids, attention_mask=[1] * len(ids))
        ids = [self.encode(each, add_special_tokens, split_special_tokens=split_special_tokens) for each in text]
        return TokenIds(input_ids=ids, attention_mask=[[1] * len(each) for each in ids])

    def expect_room(self, text: str, max_tokens: int | None) -> None:
        """Raises ValueError for text that is not Unicode, or cannot come to so few tokens whatever they are."""
        if not text.isascii():
            text.encode()  # a ValueError for unpaired surrogates
        if max_tokens is None or len(text) <= max_tokens:
            return
        bound = self._length_bound
        if bound is None or len(text) <= max_tokens * bound.characters:
            return
        least = bound.least_tokens(text)
        if least > max_tokens:
            raise PromptTooLongError(
                f"prompt: {len(text):,} characters are at least {least:,} tokens; expected at most {max_tokens:,}"
            )

    # ---- ids to text ----

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = True, *, after: Sequence[int] = ()) -> str:
        """The text of token ids that follow the ids `after`. Bytes that are not UTF-8 become U+FFFD."""
        return self.text_stream(skip_special_tokens, after=after).add(_as_list(ids), last=True)

    def batch_decode(self, rows: Iterable[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in rows]

    def text_stream(self, skip_special_tokens: bool = True, *, after: Sequence[int] = ()) -> TextStream:
        """As decode, for ids that come a few at a time."""
        return TextStream(self._token_bytes, skip_special_tokens=skip_special_tokens, after=after)

    def token_text(self, token: int) -> str:
        """The text of one token in the middle of a text."""
        return self.token_bytes(token).decode(errors="replace")

    @property
    def tokens_are_independent(self) -> bool:
        """Whether a token adds the same bytes to a text whatever comes before it, but at the text's beginning."""
        return self._token_bytes.independent

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token in the middle of a text, which may be a part of a character."""
        return self._token_bytes.after(token, token)

    # ---- chats ----

    def render_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt of a chat, as text. It holds its special tokens: encode it without adding any.

        messages: dicts with "role" and "content". tools: JSON schemas of functions. chat_template: a Jinja template, or
        the name of one of the model's; None: the model's own. variables: for the template, such as enable_thinking.
        add_generation_prompt: end with the opening of an answer; None: unless continue_final_message.
        continue_final_message: end with the last message's content instead, for the model to go on with.

        Raises ValueError if there is no template, or it refuses the messages or fails.
        """
        if continue_final_message and add_generation_prompt:
            raise ValueError("continue_final_message: expected add_generation_prompt=False with it, got both")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if tools is not None and not all(isinstance(tool, Mapping) for tool in tools):
            raise ValueError(f"tools: expected a list of JSON schemas of functions (dicts), got {tools!r:.80}")
        template = self._chat_template(chat_template, with_tools=tools is not None)
        fixed = {"tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
        values = {**self.special_tokens, **fixed, **variables}
        if continue_final_message:
            return templates.render_unfinished(template, messages, values)
        return templates.render(template, messages, values)

    def encode_chat(
        self,
        messages: Messages,
        *,
        split_special_tokens: bool = False,
        max_tokens: int | None = None,
        **options: Any,
    ) -> tuple[str, list[int]]:
        """The prompt of a chat, as text and as ids. options: of render_chat.

        split_special_tokens: only the special tokens that the template itself writes become tokens; what reads like
          one in a string of messages, tools, documents or the template's variables is ordinary text. A template that
          looks for one in a message does not find it; one that it joins out of pieces of several strings is a token.
        """
        if not split_special_tokens:
            text = self.render_chat(messages, **options)
            return text, self.encode(text, add_special_tokens=False, max_tokens=max_tokens)
        control = self._control_tokens
        template = options.pop("chat_template", None)
        rendered = self.render_chat(control.hide(messages), chat_template=template, **control.hide(options))
        text, marked = control.reveal(rendered)
        self.expect_room(text, max_tokens)
        return text, guarded(lambda: control.backend.encode(marked, add_special_tokens=False)).ids

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        tokenize: bool = True,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> Any:
        """The prompt of one chat or several: ids, text with tokenize=False, or with return_dict what calling the
        tokenizer gives. options: of render_chat and encode_chat."""
        options["add_generation_prompt"] = add_generation_prompt
        if conversation and not isinstance(conversation[0], Mapping):
            return [
                self.apply_chat_template(each, tokenize=tokenize, return_dict=return_dict, **options)
                for each in conversation
            ]
        if not tokenize:
            return self.render_chat(conversation, **options)
        _, ids = self.encode_chat(conversation, **options)
        return TokenIds(input_ids=ids, attention_mask=[1] * len(ids)) if return_dict else ids

    # ---- the vocabulary ----

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, added ones too."""
        vocabulary: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return vocabulary

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token or ids of several. Unknown ones get the id of the unknown token, or None without one."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self.backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or tokens of several, as the vocabulary spells them."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        skipped = self._token_bytes.special if skip_special_tokens else frozenset[int]()
        return [self.backend.id_to_token(i) for i in _as_list(ids) if i not in skipped]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as the vocabulary spells them."""
        tokens: list[str] = guarded(lambda: self.backend.encode(text, add_special_tokens=add_special_tokens)).tokens
        return tokens

    @property
    def all_special_ids(self) -> list[int]:
        return list(special_tokens_of(self.backend))

    @property
    def all_special_tokens(self) -> list[str]:
        return list(special_tokens_of(self.backend).values())

    def _named(self, name: str) -> tuple[str | None, int | None]:
        text = self.special_tokens.get(name)
        return text, None if text is None else self.backend.token_to_id(text)

    def _chat_template(self, given: str | None, *, with_tools: bool) -> str:
        if given is not None:
            return self.named_chat_templates.get(given, given)
        named = self.named_chat_templates.get("tool_use") if with_tools else None
        template = named or self.chat_template
        if template is None:
            raise ValueError("chat_template: the model has none, so expected one to be given")
        return template

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.backend)

    @cached_property
    def _length_bound(self) -> LengthBound | None:
        return length_bound(self.backend)


def _as_list(ids: Any) -> list[int]:
    """One id, a sequence, an array or a tensor as a list."""
    if isinstance(ids, Integral):
        return [int(ids)]
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return listed if isinstance(listed, list) else [listed]
