"""A lower bound on the number of tokens of a text, from its length alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import models

from pybatch.model.text.token_text import BYTE_TOKENS, byte_of_letter

_CHUNK = 1 << 16  # characters
_COMPOSED = 4  # NFC makes one character of so many at most
_KEEP_ALL = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"}  # pre-tokenizers that drop no character
_DROP_SPACES = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_GROW = {"NFD", "NFKD", "Prepend", "ByteLevel", "Lowercase"}  # normalizers that never make a text shorter


@dataclass(frozen=True)
class LengthBound:
    """characters: the most that one token stands for. vanishing: matches characters that may leave no token."""

    characters: int
    vanishing: re.Pattern[str] | None

    def least_tokens(self, text: str) -> int:
        length = len(text)
        if self.vanishing is not None:
            chunks = (text[begin : begin + _CHUNK] for begin in range(0, length, _CHUNK))
            length = sum(len(self.vanishing.sub("", chunk)) for chunk in chunks)
        return -(-length // self.characters)


def length_bound(backend: tokenizers.Tokenizer) -> LengthBound | None:
    """None where a token can stand for any number of characters: unknown words, normalizers that delete."""
    normalizers = _steps(backend.normalizer, "normalizers")
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    unknown = _unknown_bytes(backend, vocabulary, normalizers + pre_tokenizers)
    if unknown is None:
        return None
    factor, spaces_vanish = 1, any(t.lstrip or t.rstrip for t in backend.get_added_tokens_decoder().values())
    for step in normalizers:
        if step["type"] in ("NFC", "NFKC"):
            factor = _COMPOSED
        elif step["type"] == "Strip":
            spaces_vanish = True
        elif step["type"] not in _GROW and not _replaces_with_no_less(step):
            return None
    for step in pre_tokenizers:
        if step["type"] in _DROP_SPACES:
            spaces_vanish = True
        elif step["type"] not in _KEEP_ALL and step.get("behavior", "Removed") == "Removed":
            return None
    return LengthBound(factor * max(map(len, vocabulary)), _vanishing(unknown, spaces_vanish))


def _unknown_bytes(
    backend: tokenizers.Tokenizer, vocabulary: dict[str, int], steps: list[dict[str, Any]]
) -> set[int] | None:
    """The bytes that the model has no token for; None if it is not made of bytes."""
    if not isinstance(backend.model, models.BPE):
        return None
    if any(step["type"] == "ByteLevel" for step in steps):
        return {byte for letter, byte in byte_of_letter().items() if letter not in vocabulary}
    if backend.model.byte_fallback:
        return {byte for byte, token in enumerate(BYTE_TOKENS) if token not in vocabulary}
    return None


def _vanishing(unknown: set[int], spaces_vanish: bool) -> re.Pattern[str] | None:
    """Characters with an unknown byte in their UTF-8, in broad ranges, and white space if that may go."""
    ranges = "".join(map(re.escape, map(chr, sorted(byte for byte in unknown if byte < 0x80))))
    if unknown & {*range(0x80, 0xC0), *range(0xC2, 0xF0)}:
        ranges += "\x80-\U0010ffff"
    for lead in unknown & {*range(0xF0, 0xF5)}:
        begin, end = (lead - 0xF0) << 18, (lead - 0xEF) << 18
        ranges += f"{chr(max(begin, 0x10000))}-{chr(min(end - 1, 0x10FFFF))}"
    if spaces_vanish:
        ranges += r"\s"
    return re.compile(f"[{ranges}]+") if ranges else None


def _replaces_with_no_less(step: dict[str, Any]) -> bool:
    text = step.get("pattern", {}).get("String")
    return step["type"] == "Replace" and text is not None and len(step["content"]) >= len(text)


def _steps(component: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    return [] if component is None else _flat(json.loads(component.__getstate__()), name)


def _flat(part: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[name] for step in _flat(inner, name)]
