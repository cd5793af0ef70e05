"""Shows how far a batch is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pybatch.api.progress import BatchProgress


class ProgressReporter:
    """A context manager that shows progress on stderr: a bar on a terminal, elsewhere a line every few seconds.

    lines: whether to print the lines. bar: if False, a terminal gets lines too.
    """

    LINE_INTERVAL = 5.0

    def __init__(self, title: str, progress: BatchProgress, *, lines: bool, bar: bool = True) -> None:
        self._title, self._progress = title, progress
        self._console = Console(stderr=True)
        self._show_bar = bar and self._console.is_terminal
        self._show_lines = lines and not self._show_bar
        self._stop = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._show_bar:
            self._live = Live(get_renderable=self._bar, console=self._console, refresh_per_second=4)
            with suppress(OSError):
                self._live.start(refresh=True)
        elif self._show_lines:
            self._thread = threading.Thread(target=self._print_lines, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._progress.stop()
        if self._live is not None:
            with suppress(OSError):  # the terminal has been closed, which is no reason to lose a batch
                self._live.stop()
        if self._thread is not None:
            self._thread.join()

    def _print_lines(self) -> None:
        while not self._stop.wait(self.LINE_INTERVAL):
            share = self._progress.share_done
            percent = "" if share is None else f" {share:.0%}"
            self._console.print(
                f"{self._title}{percent}: {self._progress}", highlight=False, markup=False, soft_wrap=True
            )

    def _bar(self) -> Group:
        share = self._progress.share_done
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column()
        row.add_column(ratio=1)
        row.add_column(width=4, justify="right")
        bar = ProgressBar(total=None if share is None else 1.0, completed=share or 0.0)
        row.add_row(self._title, bar, "" if share is None else f"{share:.0%}")
        return Group(row, Text(self._progress.counts(), no_wrap=True), Text(self._progress.speed(), no_wrap=True))
