"""pybatch run --preview: the first answers, and a question whether to go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from pybatch.cli.command import stderr
from pybatch.cli.question import Asker
from pybatch.cli.streams import printable, shortened

if TYPE_CHECKING:
    from pybatch.api.outcomes import Outcome
    from pybatch.jobs.job import Job, Saved
    from pybatch.jobs.row_runner import RowSession
    from pybatch.jobs.rows import Row


class Preview:
    """Runs the first of a job's rows and shows them on standard error, each as it finishes.

    rows: how many; None shows none and agrees at once. To be made before standard input is taken from the terminal.
    """

    def __init__(self, rows: int | None) -> None:
        self._rows = rows
        self._asker = Asker()

    def now(self) -> float:
        """A clock in seconds that stands still while a question waits for its answer."""
        return time.perf_counter() - self._asker.seconds

    def agreed(
        self,
        job: Job,
        session: RowSession,
        pending: Iterator[Row],
        run: Callable[[Iterator[Row]], bool],
        stopped: Callable[[], bool],
        all_rows: int | None,
    ) -> bool:
        """Whether the job is to go on with the rows that `pending` has left. run: answers rows, and returns whether it
        came to their end. all_rows: of the job, where that is known: there is nothing to ask after the last."""
        if self._rows is None:
            return True

        def watch(saved: Saved) -> None:
            show(job, session, saved.row, saved.outcome)

        job.watchers.append(watch)
        try:
            finished = run(islice(pending, min(self._rows, sys.maxsize)))
        finally:
            job.watchers.remove(watch)
        if not finished or job.journal.done == all_rows:
            return finished
        return self._asker.agrees("Go on with the other rows?", stopped)


def show(job: Job, session: RowSession, row: Row, outcome: Outcome) -> None:
    from pybatch.api.outcomes import Failure, parts_of
    from pybatch.jobs.estimate.survey import prompt_text
    from pybatch.jobs.row_runner import planned_row

    stderr.rule(printable(row.place), align="left", characters="-")
    if isinstance(outcome, Failure):
        stderr.print(printable(f"error: {outcome.message}"))
        return
    request = planned_row(job.request(row), session)
    if isinstance(request, Failure):  # it was none when the row was answered
        return
    plan, _ = request
    samples = iter(outcome.samples)
    for prompt in session.encode([(prompt, plan.params) for prompt in plan.prompts]):
        stderr.print(shown(prompt_text(session, prompt.token_ids, plan.params)))
        for sample in islice(samples, len(outcome.samples) // len(plan.prompts)):
            stderr.print(f"-> {shown(sample.text)}")
    for part in parts_of(outcome):
        if part.pooled is not None:
            stderr.print(f"-> {part.pooled[0]}" if len(part.pooled) == 1 else f"-> {len(part.pooled)} numbers")


def shown(text: str) -> str:
    return printable(shortened(text), keep="\n\t")
