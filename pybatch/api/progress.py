"""Progress of a batch: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pybatch.engine.metrics import EngineMetrics

TOKENS_PER_BYTE = 0.25  # roughly, in English text; used until the first row is done


class BatchProgress:
    """Counts a batch's rows and tokens, and estimates the tokens left.

    rows, size: the number of rows, and their size in bytes or characters; None if not known. max_output_tokens: the
    most that a row may generate; None if there is no limit but the context.
    """

    def __init__(
        self, metrics: EngineMetrics, rows: int | None, size: int | None, max_output_tokens: int | None = None
    ) -> None:
        self.metrics = metrics
        self.rows, self.size, self.max_output_tokens = rows, size, max_output_tokens
        self.rows_done = self.rows_failed = self.prompt_tokens = 0
        self._size_done = self._size_answered = 0
        self._tokens_before, self._output_before = metrics.step_tokens, metrics.output_tokens
        self._start = time.perf_counter()

    def finish(self, size: int, prompt_tokens: int, *, failed: bool) -> None:
        """Counts a finished row; size: its share of the whole size."""
        self.rows_done += 1
        self.rows_failed += failed
        self.prompt_tokens += prompt_tokens
        self._size_done += size
        self._size_answered += 0 if failed else size

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def tokens(self) -> int:
        """Prompt and output tokens that the model has processed."""
        return self.metrics.step_tokens - self._tokens_before

    @property
    def output_tokens(self) -> int:
        return self.metrics.output_tokens - self._output_before

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that are in use."""
        return self.metrics.kv_blocks_now / self.metrics.kv_blocks

    @property
    def tokens_left(self) -> float | None:
        """An estimate of the prompt and output tokens still to be processed; None while there is nothing to base it on.

        Prompt tokens are in proportion to the size of the rows left. For output tokens the mean of the finished rows
        would be too low, since short ones finish first; all output tokens per finished row is the maximum-likelihood
        mean of such censored lengths.
        """
        if self.rows is None or self.size is None:
            return None
        if self.rows_done >= self.rows:
            return 0.0
        answered = self.rows_done - self.rows_failed
        if answered:
            per_size = self.prompt_tokens / max(1, self._size_answered)
            output = self.output_tokens / answered
            if self.max_output_tokens is not None:
                output = min(output, self.max_output_tokens)
        elif self.max_output_tokens is not None:
            per_size, output = TOKENS_PER_BYTE, self.max_output_tokens
        else:
            return None
        begun = self.tokens - self.output_tokens - self.prompt_tokens  # of prompts whose rows are not done
        prompt = max(0.0, per_size * (self.size - self._size_done) - begun)
        return prompt + output * (self.rows - self.rows_done)

    @property
    def share_done(self) -> float | None:
        """Share of the tokens that are done, 0 to 1; None if tokens_left is None."""
        left = self.tokens_left
        return None if left is None else 1.0 if left == 0 else self.tokens / (self.tokens + left)

    def __str__(self) -> str:
        rows = f"{self.rows_done:,}" if self.rows is None else f"{self.rows_done:,}/{self.rows:,}"
        failed = f" ({self.rows_failed:,} failed)" if self.rows_failed else ""
        rate = self.tokens / max(self.seconds, 1e-9)
        left = self.tokens_left
        remaining = "-:--" if left is None or not rate else clock(left / rate)
        speed = f"{self.tokens:,} tokens · {rate:,.0f} tok/s"
        return f"{rows} rows{failed} · {speed} · KV {self.kv_usage:.0%} · {remaining} left"


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
        return Group(row, Text(str(self._progress), no_wrap=True))


def clock(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
