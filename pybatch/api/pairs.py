"""A query and a document, and the prompts that they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """What a model judges. The prompts that it becomes depend on the model: Scorer makes them."""

    query: str
    document: str


@dataclass(frozen=True, slots=True)
class JoinedTexts:
    """A prompt of two texts, as the tokenizer joins them. room: the most tokens, for which its end is cut; None: it may
    have any number."""

    first: str
    second: str
    room: int | None = None

    def token_ids(self, tokenizer: Tokenizer, max_tokens: int | None) -> list[int]:
        """max_tokens: as Tokenizer.encode's, where nothing is to be cut."""
        if self.room is None:
            for text in (self.first, self.second):
                tokenizer.expect_room(text, max_tokens)
        return tokenizer.encode_pair(self.first, self.second)[: self.room]


@dataclass(frozen=True, slots=True)
class FramedText:
    """A prompt of token ids, a text in which no special token counts, and token ids. room: the most tokens, for which
    the text's end is cut; None: it may have any number."""

    before: tuple[int, ...]
    text: str
    after: tuple[int, ...]
    room: int | None = None

    def token_ids(self, tokenizer: Tokenizer, max_tokens: int | None) -> list[int]:
        """max_tokens: as Tokenizer.encode's, where nothing is to be cut."""
        most = max_tokens if self.room is None else None
        ids = tokenizer.encode(self.text, add_special_tokens=False, split_special_tokens=True, max_tokens=most)
        room = None if self.room is None else max(0, self.room - len(self.before) - len(self.after))
        return [*self.before, *ids[:room], *self.after]
