"""How many tokens a text comes to at least, told from its length alone."""

from __future__ import annotations

import json
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
    """characters: the most that one token stands for. spaces_count: no white space vanishes on the way to tokens."""

    characters: int
    spaces_count: bool

    def least_tokens(self, text: str) -> int:
        length = len(text)
        if not self.spaces_count:
            chunks = (text[begin : begin + _CHUNK] for begin in range(0, length, _CHUNK))
            length = sum(len(word) for chunk in chunks for word in chunk.split())
        return -(-length // self.characters)


def length_bound(backend: tokenizers.Tokenizer) -> LengthBound | None:
    """None where a token can stand for any number of characters: unknown words, normalizers that delete."""
    normalizers = _steps(backend.normalizer, "normalizers")
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if not _covers_all_bytes(backend, vocabulary, normalizers + pre_tokenizers):
        return None
    factor, spaces_count = 1, not any(t.lstrip or t.rstrip for t in backend.get_added_tokens_decoder().values())
    for step in normalizers:
        if step["type"] in ("NFC", "NFKC"):
            factor = _COMPOSED
        elif step["type"] == "Strip":
            spaces_count = False
        elif step["type"] not in _GROW and not _replaces_with_no_less(step):
            return None
    for step in pre_tokenizers:
        if step["type"] in _DROP_SPACES:
            spaces_count = False
        elif step["type"] not in _KEEP_ALL and step.get("behavior", "Removed") == "Removed":
            return None
    return LengthBound(factor * max(map(len, vocabulary)), spaces_count)


def _covers_all_bytes(backend: tokenizers.Tokenizer, vocabulary: dict[str, int], steps: list[dict[str, Any]]) -> bool:
    """Whether no text is unknown to the model."""
    if not isinstance(backend.model, models.BPE):
        return False
    if any(step["type"] == "ByteLevel" for step in steps):
        return all(letter in vocabulary for letter in byte_of_letter())
    return bool(backend.model.byte_fallback) and all(token in vocabulary for token in BYTE_TOKENS)


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
