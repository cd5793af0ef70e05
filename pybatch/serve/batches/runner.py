"""Runs batches: a few at a time, the oldest first, on threads beside the server's event loop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pybatch.api.async_llm import AsyncLLM
from pybatch.api.shared_session import InFlight
from pybatch.jobs.preparation import OtherJobError
from pybatch.serve.batches.rows import BatchFaultError, check_batch
from pybatch.serve.batches.run import BatchRun
from pybatch.serve.store import Batch, Storage
from pybatch.serve.store.batches import Door, Status
from pybatch.serve.store.pages import Cut, Page

logger = logging.getLogger(__name__)

TICK = 5.0  # seconds between two looks for batches and files that have expired


@dataclass(frozen=True)
class BatchTotals:
    """by_status: how many batches there are. rows_completed, rows_failed: of all batches that are still known."""

    by_status: dict[Status, int]
    rows_completed: int
    rows_failed: int


class ClosingError(Exception):
    """The process ends before a batch is checked: the next one checks it."""


class BatchRunner:
    """Takes batches from the storage and puts their results there.

    One thread, the clerk, does what is short: it checks new batches, and ends those that are cancelled or have expired
    before they ran. `at_once` others answer rows. What is under way when the process ends goes on in the next one.

    served: the model's names. most_rows: of a batch.
    """

    def __init__(
        self, storage: Storage, llm: AsyncLLM, served: tuple[str, ...], *, at_once: int, most_rows: int
    ) -> None:
        self._storage, self._batches, self._llm = storage, storage.batches, llm
        self._served, self._most_rows = served, most_rows
        self._in_flight = InFlight(llm.session.capacity)
        self._changed = threading.Condition()  # over the four below
        self._at_work: dict[str, BatchRun] = {}
        self._of_others: set[str] = set()  # that were begun with another model: this process can only end them
        self._stuck: set[str] = set()  # that this process cannot go on with
        self._closing = False
        finders = [self._short_work, *[self._long_work] * at_once]
        self._threads = [
            threading.Thread(target=self._loop, args=(find,), name="pybatch-batches", daemon=True) for find in finders
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def park(self) -> None:
        """No further rows run, and no batch begins. Rows that are at work run again later."""
        with self._changed:
            self._closing = True
            for run in self._at_work.values():
                run.parked = True
            self._changed.notify_all()

    def close(self) -> None:
        """Parks what is under way, and waits until the journals are closed."""
        self.park()
        for thread in self._threads:
            if thread.ident is not None:  # or it was never started
                thread.join()

    def cancel(self, id: str) -> bool:
        """Has a batch end, without waiting for it. Returns whether it could still be cancelled."""
        moved = self._batches.move(id, ["validating", "in_progress"], "cancelling")
        with self._changed:
            run = self._at_work.get(id)
            if run is not None and moved:
                run.cancelled = True
            self._changed.notify_all()
        return moved

    def add(self, batch: Batch, rows: Path | Iterable[bytes]) -> None:
        """A new batch. rows, and what it raises: as BatchStore.add's."""
        self._batches.add(batch, rows)
        with self._changed:
            self._changed.notify_all()

    def get(self, id: str, door: Door) -> Batch | None:
        """The batch, with its counts of this moment."""
        batch = self._batches.get(id, door)
        return None if batch is None else self._current(batch)

    def page(self, door: Door, cut: Cut) -> Page[Batch]:
        """As BatchStore.page, with counts of this moment."""
        page = self._batches.page(door, cut)
        return Page([self._current(batch) for batch in page.items], page.has_more)

    def delete(self, batch: Batch) -> None:
        """One that has ended."""
        self._batches.delete(batch)

    def _current(self, batch: Batch) -> Batch:
        with self._changed:
            run = self._at_work.get(batch.id)
            journal = None if run is None else run.journal
        if journal is None:
            return batch
        return replace(batch, completed=journal.done - journal.failed, failed=journal.failed)

    def totals(self) -> BatchTotals:
        completed, failed = self._batches.rows_of_all()
        with self._changed:
            runs = list(self._at_work.values())
        for run in runs:
            now = self._current(run.batch)
            completed += now.completed - run.batch.completed
            failed += now.failed - run.batch.failed
        return BatchTotals(self._batches.by_status(), completed, failed)

    # ---- on the threads ----

    def _loop(self, find: Callable[[], Batch | None]) -> None:
        while (run := self._claim(find)) is not None:
            try:
                self._work(run)
            except Exception:
                self._give_up(run.batch)
            with self._changed:
                del self._at_work[run.batch.id]
                self._changed.notify_all()

    def _claim(self, find: Callable[[], Batch | None]) -> BatchRun | None:
        """Waits for a batch; None at the end."""
        with self._changed:
            while not self._closing:
                try:
                    batch = find()
                except OSError:
                    logger.exception("the database of batches cannot be read")
                    batch = None
                if batch is None:
                    self._changed.wait(TICK)
                    continue
                try:
                    run = BatchRun(batch, self._storage, self._llm, self._served, self._in_flight)
                except Exception:  # as where the process that took it knew another format of results
                    self._give_up(batch)
                    continue
                self._at_work[batch.id] = run
                return run
        return None

    def _give_up(self, batch: Batch) -> None:
        """For this process, because of the exception that is being handled."""
        logger.exception("batch %s cannot go on in this process", batch.id)
        with self._changed:
            self._stuck.add(batch.id)

    def _short_work(self) -> Batch | None:
        taken = [*self._at_work, *self._stuck]
        self._storage.files.remove_expired()
        return self._batches.oldest(["validating", "cancelling"], taken) or self._batches.oldest(
            ["in_progress"], taken, due_at=time.time()
        )

    def _long_work(self) -> Batch | None:
        return self._batches.oldest(["in_progress", "finalizing"], [*self._at_work, *self._stuck, *self._of_others])

    def _work(self, run: BatchRun) -> None:
        batch = run.batch
        try:
            if batch.status == "validating":
                self._check(batch)
            else:
                run.answer()
        except ClosingError:
            return
        except BatchFaultError as error:
            self._batches.move(batch.id, ["validating"], "failed", errors=error.errors)
        except OtherJobError as error:
            logger.warning("%s waits for a server with what it began with: %s", batch.id, error.differences)
            with self._changed:
                self._of_others.add(batch.id)
        except Exception as error:
            self._llm.thread.expect_running()  # or it goes on when the server has been started again
            logger.exception("%s has failed", batch.id)
            run.fail(error)
        now = self._batches.get(batch.id)
        if now is not None and now.ended:
            run.clear()

    def _check(self, batch: Batch) -> None:
        total, model = check_batch(
            batch,
            self._batches.input(batch.id),
            self._served,
            self._llm,
            most=self._most_rows,
            pace=self._pace,
        )
        self._batches.update(batch.id, total=total, model=model)
        self._batches.move(batch.id, ["validating"], "in_progress")

    def _pace(self) -> None:
        """Between two rows that are checked: an engine that runs comes first."""
        if self._closing:
            raise ClosingError
        self._llm.thread.let_run()
