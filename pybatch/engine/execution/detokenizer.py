"""Token ids to text as they come, and stop strings in that text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TextDecoder(Protocol):
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


class StopFinder:
    """Finds the first stop string to be complete in a growing text, wherever the pieces of the text begin and end.

    Where two are complete at the same character, the longer one counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._longest = len(self._stops[0]) if stops else 0

    def find(self, text: str, begin: int, floor: int = 0) -> tuple[int, int] | None:
        """(begin, end) of the first match that ends after `begin` and lies in text[floor:]; None if there is none."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            at = text.find(stop, max(floor, begin - len(stop) + 1))
            if at >= 0 and (best is None or at + len(stop) < best[1]):
                best = (at, at + len(stop))
        return best

    def held_back(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0


class Detokenizer:
    """The text of one growing sequence: at every moment what decoding all its output ids at once would give, but for
    an unfinished character at the end.

    Only a window of the last few tokens is decoded again: from `_context` on, since decoders treat the first token
    they see differently, and `_done` tokens of it are already in the text.
    """

    def __init__(self, decoder: TextDecoder, stops: Sequence[str], *, skip_special_tokens: bool, min_tokens: int = 0):
        self.text = ""
        self.stop: str | None = None
        self._decoder = decoder
        self._skip_special_tokens = skip_special_tokens
        self._finder = StopFinder(stops)
        self._min_tokens = min_tokens
        self._floor = 0  # stop strings count from this character on
        self._context = 0
        self._done = 0

    def update(self, ids: Sequence[int], *, last: bool, include_stop: bool) -> bool:
        """Takes all output ids so far; True if a stop string ended the text, which is then cut there.

        last: no token will follow, so an unfinished character comes out as it is (U+FFFD).
        """
        before = len(self.text)
        text = self._decode(ids[self._context :])
        if last or not text.endswith("\ufffd"):
            added = text[len(self._decode(ids[self._context : self._done])) :]
            if added:  # else the context would be tokens without text, which is as good as none
                self._context = self._done
            self._done = len(ids)
            self.text += added
        if len(ids) < self._min_tokens:
            self._floor = len(self.text)
            return False
        match = self._finder.find(self.text, before, self._floor)
        if match is None:
            return False
        begin, end = match
        self.stop = self.text[begin:end]
        self.text = self.text[: end if include_stop else begin]
        return True

    def settled_text(self) -> str:
        """The text that no stop string can take back any more."""
        return self.text[: len(self.text) - self._finder.held_back(self.text)]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._decoder.decode(ids, self._skip_special_tokens) if ids else ""
