"""Token ids to text as they come, and stop strings in that text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy

from pybatch.model.text.token_text import TextStream


class StopFinder:
    """Finds the stop string that is complete first in a growing text, wherever the text's pieces begin and end.

    Of two that are complete at the same character, the longer one counts.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._longest = len(self._stops[0]) if stops else 0
        self._in_order = sorted(stops)
        self._first = {stop[0] for stop in stops}  # characters

    def find(self, text: str, begin: int, floor: int = 0) -> tuple[int, int] | None:
        """(begin, end) of the first match that ends after `begin` and lies in text[floor:]; None if there is none."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            at = text.find(stop, max(floor, begin - len(stop) + 1))
            if at >= 0 and (best is None or at + len(stop) < best[1]):
                best = (at, at + len(stop))
        return best

    def held_back(self, text: str) -> int:
        """The number of characters at the end of the text that may begin a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length] in self._first:
                end = text[-length:]
                after = bisect_right(self._in_order, end)  # those that begin with it, and are longer, come next
                if after < len(self._in_order) and self._in_order[after].startswith(end):
                    return length
        return 0


class Detokenizer:
    """The text of one growing sequence, up to its first stop string.

    min_tokens: a stop string counts from the character on that these tokens end with.
    """

    def __init__(self, stream: TextStream, stops: Sequence[str], *, min_tokens: int = 0) -> None:
        self.text = ""
        self.stop: str | None = None
        self._stream = stream
        self._finder = StopFinder(stops)
        self._tokens_before_stops = min_tokens
        self._floor = 0  # stop strings count from this character on

    def branch(self) -> Detokenizer:
        """Another that goes on from the same text."""
        other = copy(self)
        other._stream = self._stream.branch()
        return other

    def add(self, ids: Sequence[int], *, last: bool, include_stop: bool) -> bool:
        """Takes the next ids. Returns True if a stop string ended the text, which is then cut there.

        last: no token will follow, so an unfinished character comes out as U+FFFD.
        include_stop: keep the stop string in the text.
        """
        before = len(self.text)
        self.text += self._stream.add(ids, last=last)
        self._tokens_before_stops -= len(ids)
        if self._tokens_before_stops > 0:
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
        """The text without an end that may turn out to begin a stop string."""
        return self.text[: len(self.text) - self._finder.held_back(self.text)]
