"""What most often followed the longest end of a text that came before (SuffixDecoding, Oliaro et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Tokens
from weakref import WeakKeyDictionary

from pybatch.engine.scheduling.sequence import Sequence

_LEAST_SHARE = 0.1  # of the places where a context came, that its next token must have followed; SuffixDecoding's too
_COUNTED = 64  # contexts whose count grows with a token, longest first; text that repeats itself has more of them


class SuffixAutomaton:
    """Every piece of a text, each with how often it came, in at most twice as many states as the text has tokens
    (Blumer et al. 1985). Adding a token takes constant time on average.

    A state is a set of pieces that end at the same places: all ends, down to some length, of its longest one.
    """

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]  # the state of the longest end that came at more places
        self._length = [0]  # of the longest piece
        self._count = [0]
        self._last = 0  # the state of the whole text

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._add(token)

    def following(self, most: int) -> list[int]:
        """After the longest end of the text that came before, the token that most often followed, and so on, while it
        has followed in a good share of the places."""
        state, places = self._last, 0
        longest = self._length[self._link[state]] if state else 0
        found: list[int] = []
        while longest and len(found) < min(most, longest + 1):  # a short context says little about far tokens
            if not self._next[state]:  # nothing has followed yet: so as if the text went on as it did before
                state = self._link[state]
                places = self._count[state] - 1
            token, state = max(self._next[state].items(), key=lambda step: self._count[step[1]])
            if self._count[state] < _LEAST_SHARE * places:
                break
            found.append(token)
            places = self._count[state]
        return found

    def _add(self, token: int) -> None:
        link, length = self._link, self._length
        new = self._state(length[self._last] + 1, {}, 0)
        at = self._last
        while at >= 0 and token not in self._next[at]:
            self._next[at][token] = new
            at = link[at]
        if at < 0:
            link[new] = 0
        else:
            old = self._next[at][token]
            if length[old] > length[at] + 1:
                old = self._split(old, at, token)
            link[new] = old
        self._last = at = new
        for _ in range(_COUNTED):
            if at <= 0:
                break
            self._count[at] += 1
            at = link[at]

    def _split(self, old: int, at: int, token: int) -> int:
        """A state of its own for the pieces of `old` that are one token longer than those of `at`, since they have come
        at one place more."""
        link, next = self._link, self._next
        split = self._state(self._length[at] + 1, next[old].copy(), self._count[old])
        link[split], link[old] = link[old], split
        while at >= 0 and next[at].get(token) == old:
            next[at][token] = split
            at = link[at]
        return split

    def _state(self, length: int, next: dict[int, int], count: int) -> int:
        self._next.append(next)
        self._link.append(-1)
        self._length.append(length)
        self._count.append(count)
        return len(self._length) - 1


class SuffixProposer:
    """Keeps an automaton for each sequence, to which a step adds the tokens that are new."""

    has_read = False

    def __init__(self) -> None:
        self._automata: WeakKeyDictionary[Sequence, tuple[SuffixAutomaton, int]] = WeakKeyDictionary()

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[Tokens[int]]:
        return [self._following(sequence, count) for sequence, count in zip(sequences, counts, strict=True)]

    def _following(self, sequence: Sequence, count: int) -> list[int]:
        automaton, known = self._automata.get(sequence) or (SuffixAutomaton(), 0)
        automaton.extend(sequence.tokens[known:])
        self._automata[sequence] = automaton, len(sequence.tokens)
        return automaton.following(count)
