"""Special tokens kept apart from text that reads like them."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import tokenizers

from pybatch.model.text.token_text import special_tokens_of


class ControlTokens:
    """A copy of a backend (`backend`) in which the special tokens have secret names, so that their usual names are
    ordinary text to it. A chat gets there in three steps: hide what reads like a special token in its strings, render,
    reveal.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        texts = [text for text in special_tokens_of(backend).values() if text]
        self._names = {text: f"{_secret()}{i}{_secret()}" for i, text in enumerate(texts)}
        self._pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")
        self._mark, self._letter_mark = _secret(), _secret()
        self._letter = re.compile(f"{self._letter_mark}([0-9a-f]+){self._letter_mark}")
        self.backend = self._renamed(backend)

    def hide(self, value: Any) -> Any:
        """The value with a mark inside whatever reads like a special token in its strings. Keys of dicts stay as they
        are."""
        if isinstance(value, str):
            return self._pattern.sub(lambda match: self._marked(match[0]), value)
        if isinstance(value, dict):
            return {key: self.hide(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(each) for each in value]
        return value

    def reveal(self, rendered: str) -> tuple[str, str]:
        """Two texts without marks: as it reads, and for `backend`, with secret names where nothing was marked."""
        return self._unmarked(rendered), self._unmarked(
            self._pattern.sub(lambda match: self._names[match[0]], rendered)
        )

    def _marked(self, text: str) -> str:
        if len(text) == 1:
            return f"{self._letter_mark}{ord(text):x}{self._letter_mark}"
        return text[0] + self._mark + text[1:]

    def _unmarked(self, text: str) -> str:
        return self._letter.sub(lambda match: chr(int(match[1], 16)), text.replace(self._mark, ""))

    def _renamed(self, backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
        state = json.loads(backend.to_str())
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._names.get(text, text): i for text, i in model["vocab"].items()}
        else:
            model["vocab"] = [[self._names.get(text, text), score] for text, score in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = self._names.get(model["unk_token"], model["unk_token"])
        for token in state["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(state))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"split_special_tokens: not with this model's tokenizer ({error})") from error


def _secret() -> str:
    """Random private-use characters, which nobody can guess and no normalizer changes."""
    return "".join(chr(0xF0000 + secrets.randbelow(0xFFF0)) for _ in range(6))
