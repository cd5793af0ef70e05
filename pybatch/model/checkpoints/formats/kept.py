"""What becomes of quantised matrices, in one line for the log."""

from __future__ import annotations

import logging
from collections import Counter

import torch

from pybatch.model.checkpoints.formats.matrices import BlockMatrix, ChannelRows
from pybatch.model.checkpoints.formats.mxfp4 import Stack
from pybatch.model.rows import Rows

logger = logging.getLogger(__name__)


class Kept:
    def __init__(self, name: str, method: str) -> None:
        self.name, self.method = name, method
        self._seen: dict[str, tuple[str, str]] = {}  # of each module its kind, and why it has not its own bits

    def note(self, module: str, rows: Rows) -> None:
        rows = rows.rows if isinstance(rows, Stack) else rows
        if isinstance(rows, BlockMatrix):
            self._seen[module] = rows.block_type, rows.requantized
        elif isinstance(rows, ChannelRows):
            self._seen[module] = "int8" if rows.codes.dtype == torch.int8 else "fp8", ""
        else:
            self._seen[module] = str(rows.dtype).removeprefix("torch."), "rows that are no whole blocks of 32"

    def tell(self) -> None:
        """Logs it: a warning if there are matrices that do not run from their own bits."""
        own = Counter(kind for kind, reason in self._seen.values() if not reason)
        others = Counter(about for about in self._seen.values() if about[1])
        parts = [f"{count} run from their own bits ({kind})" for kind, count in own.items()]
        parts += [f"{count} become {kind}, for they have {reason}" for (kind, reason), count in others.items()]
        logger.log(
            logging.WARNING if others else logging.INFO,
            "%s: of %d matrices quantised by %s, %s", self.name, len(self._seen), self.method, "; ".join(parts),
        )  # fmt: skip
