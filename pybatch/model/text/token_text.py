"""Token ids to text.

A text is the UTF-8 of the bytes that each of its tokens adds, with U+FFFD for bytes that are no character. Defined a
token at a time, it is the same however the ids are cut into pieces, takes constant work per token, and never waits for
more than the rest of one character. For whole characters it is what tokenizers' decoders give; a run of byte tokens
with a broken character in it keeps its whole ones, where `tokenizers` would replace all of them.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from itertools import pairwise
from typing import Any

import tokenizers

from pybatch.model.text.guarded import guarded

_INDEPENDENT = {"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip", "WordPiece"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_LONGEST_CHARACTER = 4  # bytes of UTF-8


class TokenBytes:
    """The bytes that a token adds to a text; found through the backend's decoder, and kept."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        steps = [] if backend.decoder is None else _steps(json.loads(backend.decoder.__getstate__()))
        self._kinds = {step["type"] for step in steps}
        # Whether a token adds the same after any other: not where a decoder changes the end of what came before.
        self.independent = self._kinds <= _INDEPENDENT and not any(step.get("stop") for step in steps)
        self.special = frozenset(special_tokens_of(backend))
        self.of = _Table(lambda token: self._added(token, token))
        self.first = lru_cache(maxsize=65536)(self._first)
        self.following = lru_cache(maxsize=65536)(self._added)

    def _first(self, token: int) -> bytes:
        """What a token is at the beginning of a text, where some decoders strip a space."""
        return self._broken(token) or self._decode(token).encode()

    def after(self, before: int, token: int) -> bytes:
        return self.of[token] if self.independent else self.following(before, token)

    def join(self, before: int | None, ids: Sequence[int]) -> bytes:
        """The bytes of ids after the token `before`, or at the beginning of a text."""
        if not ids:
            return b""
        head = self.first(ids[0]) if before is None else self.after(before, ids[0])
        if self.independent:
            return head + b"".join([self.of[token] for token in ids[1:]])
        return head + b"".join([self.after(*pair) for pair in pairwise(ids)])

    def _added(self, before: int, token: int) -> bytes:
        broken = self._broken(token)
        if broken is not None:
            return broken
        base, text = self._decode(before), self._decode(before, token)
        return text[len(base) :].encode()

    def _broken(self, token: int) -> bytes | None:
        """The bytes of a token that are not whole characters; None for any other token."""
        if "\ufffd" not in self._decode(token):
            return None
        name: str = self._backend.id_to_token(token) or ""
        if "ByteFallback" in self._kinds and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes.fromhex(match[1])
        if "ByteLevel" in self._kinds and all(letter in byte_of_letter() for letter in name):
            return bytes(byte_of_letter()[letter] for letter in name)
        return None

    def _decode(self, *ids: int) -> str:
        text: str = guarded(lambda: self._backend.decode(ids, skip_special_tokens=False))
        return text


class TextStream:
    """The text of a growing sequence, a piece at a time.

    after: the ids before it, of which nothing comes out. They say whether the text begins here, and may hold the first
    bytes of its first character.
    """

    def __init__(self, tokens: TokenBytes, *, skip_special_tokens: bool, after: Sequence[int] = ()) -> None:
        self._tokens = tokens
        self._skipped = tokens.special if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        seen: list[int] = []
        for token in reversed(after):
            if token not in self._skipped:
                seen.append(token)
                if len(seen) == _LONGEST_CHARACTER:
                    break
        seen.reverse()
        self._utf8.decode(tokens.join(None, seen))
        self._before = seen[-1] if seen else None
        self._begun = bool(self._utf8.getstate()[0])  # a broken character at the prompt's end is the prompt's

    def branch(self) -> TextStream:
        """Another that goes on from the same text."""
        other = copy(self)
        other._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        other._utf8.setstate(self._utf8.getstate())
        return other

    def add(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that ids add. An unfinished character waits for its end; with last, it comes out as U+FFFD."""
        if self._skipped:
            ids = [token for token in ids if token not in self._skipped]
        text = self._utf8.decode(self._tokens.join(self._before, ids), last)
        if ids:
            self._before = ids[-1]
        if self._begun and text:
            self._begun = False
            text = text.removeprefix("\ufffd")
        return text


class _Table(dict[int, bytes]):
    """A dict that finds missing entries itself."""

    def __init__(self, find: Any) -> None:
        self._find = find

    def __missing__(self, token: int) -> bytes:
        found: bytes = self._find(token)
        self[token] = found
        return found


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """A decoder and those within it."""
    return [decoder, *(step for inner in decoder.get("decoders", ()) for step in _steps(inner))]


def special_tokens_of(backend: tokenizers.Tokenizer) -> dict[int, str]:
    """The special tokens by id."""
    return {i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special}


@lru_cache(maxsize=1)
def byte_of_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for: printable ones for themselves, as in GPT-2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
