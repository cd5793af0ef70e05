"""What the engine raises for a whole request, not for what is in it."""

from __future__ import annotations


class QueueFullError(RuntimeError):
    """As many requests are unfinished as max_num_seqs and max_queued allow: ask again when some have ended."""

    def __init__(self, max_num_seqs: int, max_queued: int) -> None:
        super().__init__(
            f"max_queued: {max_queued} requests wait while max_num_seqs = {max_num_seqs} run, and no more may; try "
            "again when some have ended"
        )
