"""Texts that are looked for in one that grows."""

from __future__ import annotations

import re
from collections.abc import Collection


class Marks:
    def __init__(self, texts: Collection[str]) -> None:
        longest_first = sorted(texts, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._beginnings = {text[:end] for text in texts for end in range(1, len(text))}
        self._longest = max(map(len, texts), default=0)

    def find(self, text: str) -> int | None:
        """Where the first one begins."""
        match = self._pattern.search(text)
        return None if match is None else match.start()

    def unfinished(self, text: str) -> int:
        """The number of characters at the end of the text that may begin one."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0

    def take_out(self, text: str, *, last: bool) -> tuple[str, str]:
        """The text without them, and its end that may begin one, unless it is the last."""
        begin, shown = 0, []
        for match in self._pattern.finditer(text):
            if not last and text[match.start() :] in self._beginnings:  # of a longer one
                break
            shown.append(text[begin : match.start()])
            begin = match.end()
        rest = text[begin:]
        unfinished = 0 if last else self.unfinished(rest)
        return "".join([*shown, rest[: len(rest) - unfinished]]), rest[len(rest) - unfinished :]
