"""What pybatch run does once it knows its job: the model, the rows, and what is told of them."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pybatch.cli import exit_codes
from pybatch.cli.command import CommandError, UsageError, load, of_file, one_line, stderr, tell_unpacked, usage_errors
from pybatch.cli.preview import Preview
from pybatch.cli.signals import Stop, ending_in_order, exit_code
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.api.session import Session
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.cluster.cluster_session import ClusterSession
    from pybatch.engine import SamplingParams
    from pybatch.jobs.job import Job
    from pybatch.jobs.preparation import OnError, OtherJobError, Preparation
    from pybatch.jobs.report.files import ReportFiles
    from pybatch.jobs.rows import Row


AT_ONCE = "Ended at once. What is done is in the journal: the same command goes on."


class Interruption:
    """What a signal says, and puts in order, while no row runs.

    jobs: that have been opened."""

    def __init__(self) -> None:
        self.jobs: list[Preparation] = []

    def __call__(self) -> str:
        from pybatch.jobs.preparation import discard_unused_journals

        discard_unused_journals()
        for job in reversed(self.jobs):
            if job.journal.done and job.resumable and not job.destination.fresh:
                saved = f"{job.journal.done:,} rows are done and saved in {job.destination.output}"
                return printable(f"Interrupted: {saved}. {to_go_on()}")
        return "Interrupted: no row was answered."


@contextmanager
def local(
    engine: EngineFlags, sampling: SamplingFlags, profile: str | None = None, steps: int | None = None
) -> Iterator[tuple[Session, SamplingParams]]:
    """Of a model that this process loads. profile: the file for a trace of so many steps, or those that there are."""
    llm, params = load(engine, sampling)
    if profile is None:
        yield llm.session, params
        return
    from pybatch.engine.profile import StepProfile

    trace = StepProfile(llm.engine, Path(profile), steps)
    trace.begin()
    try:
        yield llm.session, params
    finally:
        try:
            trace.end()
        except (OSError, RuntimeError) as error:
            tell(f"There is no profile: {one_line(error)}")


@contextmanager
def cluster(
    address: str, engine: EngineFlags, sampling: SamplingFlags
) -> Iterator[tuple[ClusterSession, SamplingParams]]:
    """Of models that a cluster's workers load."""
    from pybatch.cluster.cluster_session import cluster_session
    from pybatch.machine.ray_cluster import ClusterError

    with ExitStack() as opened:
        try:
            with usage_errors():
                session = opened.enter_context(cluster_session(address, engine.given()))
                params = replace(session.default_params, **sampling.given())
        except ClusterError as error:
            raise UsageError(str(error)) from error
        if session.unpacked:
            tell_unpacked(engine.model)
        yield session, params


def answer(
    session: Session | ClusterSession,
    params: SamplingParams,
    prepared: Preparation,
    on_error: OnError,
    first_rows: Preview,
    grace: float,
    cache: Path | None,
    told: ReportFiles,
    model: str,
    traced: Callable[[Job], AbstractContextManager[object]],
    *,
    last: bool = True,
) -> None:
    """traced: what is to be entered with the job while its rows run. last: nothing comes behind the job, whose failed
    rows then are the command's exit code."""
    from pybatch.api.progress_reporter import ProgressReporter
    from pybatch.jobs.report.report import JobReport
    from pybatch.jobs.report.summary import summary_table
    from pybatch.jobs.row_runner import RowRunner
    from pybatch.jobs.sources.read_ahead import ReadAhead

    progress = prepared.progress(session, params, now=first_rows.now)
    output = prepared.destination.output
    with ending_in_order(AT_ONCE if prepared.resumable else "Ended at once.") as stop, ExitStack() as opened:
        with usage_errors():
            job = prepared.start(session.tokenizer, params, progress, arithmetic=session.arithmetic, on_error=on_error)
        if job.journal.done or progress.rows_retried:
            again = f", {progress.rows_retried:,} that failed run again" if progress.rows_retried else ""
            tell(f"Going on: {job.journal.done:,} rows are done{again}.")
        opened.enter_context(traced(job))
        pending = job.pending()
        answers = opened.enter_context(prepared.answers(session, cache))
        bar = not prepared.shows_on_terminal  # which would be in the rows' way
        of_job = {"input": prepared.source.name, "output": output, "on_error": on_error}
        title = f"{Path(prepared.source.name).name} with {Path(model).name}"

        def run_rows(some: Iterator[Row]) -> bool:
            ahead = ReadAhead(some, name=prepared.source.name)
            return RowRunner(session, job, ahead, answers, stop.requested, grace).run()

        with (
            job_errors(prepared),
            JobReport(told, title, session.metrics, job, {"Job": of_job, **session.settings}) as report,
        ):
            finished = False
            if first_rows.agreed(job, session, pending, run_rows, stop.requested, progress.rows):
                with ProgressReporter("Answering", progress, lines=True, bar=bar):
                    finished = run_rows(pending)
            report.finished = finished
            job.results.publish(finished=finished)
        stderr.print(summary_table(progress, session.metrics.summary(), job.failures, told.prices))
        if report.fault is not None:
            tell(f"There is no report: {of_file(report.fault)}")
        if job.failure is not None:
            raise CommandError(f"{job.failure}; {job.journal.done:,} rows are saved", exit_codes.FAILED_ROWS)
        if not finished:
            tell_interrupted(prepared, stop)
    if job.journal.failed:
        to = prepared.destination
        where = to.errors if prepared.resumable else to.error_file or job.results.name
        tell(f"{job.journal.failed:,} of {job.journal.done:,} rows failed: what is wrong with each is in {where}.")
    if report.fault is not None:
        raise typer.Exit(exit_codes.FAILED)
    if job.journal.failed and last:
        raise typer.Exit(exit_codes.FAILED_ROWS)


def tell_finished(prepared: Preparation, *, report: bool) -> None:
    """report: whether one was asked for."""
    notes, to = prepared.journal.notes, prepared.destination
    failed = f", {notes['failed']:,} of them failed" if notes["failed"] else ""
    tell(f"Done already: {notes['rows']:,} rows in {to.output}{failed}. --fresh starts over.")
    if report:
        tell("No report has been written, since no row has run.")
    if notes["failed"]:
        raise typer.Exit(exit_codes.FAILED_ROWS)


def tell_interrupted(prepared: Preparation, stop: Stop) -> None:
    """After a signal, or a question that was answered with no."""
    why = "Stopped" if stop.signum is None else "Interrupted"
    if not prepared.resumable:
        tell(f"{why}: {prepared.rows_saved:,} rows are done, and written.")
    else:
        tell(f"{why}: {prepared.journal.done:,} rows are done and saved in {prepared.destination.output}.")
        tell(to_go_on())
    raise typer.Exit(exit_codes.OK if stop.signum is None else exit_code(stop.signum))


def to_go_on() -> str:
    return f"To go on: pybatch {shlex.join(going_on(sys.argv[1:]))}"


def going_on(arguments: list[str]) -> list[str]:
    """Those of the command that goes on where the one with these arguments has stopped."""
    again, rest = [], iter(arguments)
    for each in rest:
        if each == "--preview":
            next(rest, None)
        elif each not in ("--fresh", "--overwrite") and not each.startswith("--preview="):
            again.append(each)
    return again


def show_differences(error: OtherJobError) -> None:
    from rich.table import Table

    table = Table(title="What differs from the job in the journal", title_justify="left")
    for column in ("", "then", "now"):
        table.add_column(column)
    for row in error.differences:
        table.add_row(*map(printable, row))
    stderr.print(table)


@contextmanager
def job_errors(prepared: Preparation) -> Iterator[None]:
    """Turns what ends a job before its time into one line, with the count of the rows that are saved. Those are put in
    the output if it still takes them."""
    from pybatch.jobs.journal import JournalMismatchError

    try:
        yield
    except Exception as error:
        prepared.publish_what_there_is()
        if isinstance(error, JournalMismatchError):
            raise UsageError(str(error)) from error
        reason, code = f"the job cannot go on: {one_line(error)}", exit_codes.FAILED
        if isinstance(error, OSError) and error.filename is not None:
            reason = of_file(error)
            code = {errno.EPIPE: exit_codes.BROKEN_PIPE, errno.EFBIG: exit_codes.USAGE}.get(error.errno or 0, code)
        raise CommandError(f"{reason}; {prepared.rows_saved:,} rows are saved", code) from error


def tell(message: str) -> None:
    stderr.print(printable(message))
