"""What runs in one step of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from pybatch.engine.scheduling.sequence import Sequence


@dataclass(slots=True, eq=False)
class Chunk:
    """A sequence's next num_tokens tokens, to be computed in one step.

    decodes: the sequence has one token left to compute. Such a chunk is the same object in every step, until its
    sequence ends, is preempted or pruned. drafts: what may follow that token, computed with it in this step to be
    verified.
    """

    sequence: Sequence
    num_tokens: int
    decodes: bool = False
    drafts: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether it reaches the sequence's last known token, so that the next one can be sampled."""
        return self.num_tokens - len(self.drafts) == self.sequence.num_pending


def num_decodes(chunks: list[Chunk]) -> int:
    """The number of a step's chunks that decode; they come first."""
    count = len(chunks)
    while count and not chunks[count - 1].decodes:
        count -= 1
    return count


@dataclass(slots=True)
class Step:
    """One that is being filled: its chunks of prompts, and how far admission has come.

    tokens: of these chunks. pairs: of one of them and one that it attends to. kept: tokens for prompts in no danger.
    open_places: for newcomers that have not been looked at, by the policy; None: it has not been asked. newcomers: that
    have joined. full: one could not. closed: nobody may join any more.
    """

    chunks: list[Chunk] = field(default_factory=list)
    tokens: int = 0
    pairs: int = 0
    kept: int = 0
    open_places: int | None = None
    newcomers: int = 0
    full: bool = False
    closed: bool = False
