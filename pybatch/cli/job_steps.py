"""pybatch run's jobs: one, or of a chain one a step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from pybatch.cli.answering import show_differences, tell_finished
from pybatch.cli.command import usage_errors

if TYPE_CHECKING:
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.jobs.disk.line_file import LineFile
    from pybatch.jobs.preparation import Preparation
    from pybatch.jobs.report.files import ReportFiles
    from pybatch.prompts.chain import StepJob


def open_jobs(
    steps: Sequence[StepJob],
    engine: EngineFlags,
    sampling: SamplingFlags,
    stream: LineFile | None,
    told: ReportFiles,
) -> Generator[tuple[StepJob, Preparation], None, None]:
    """The jobs that have rows left, each with its journal, which is closed when the next one is asked for. To be
    closed. Where the last one is done nothing is left, whatever has become of the others' files, and it is told.

    stream: of the last results, if they go to one. told: the reports that were asked for."""
    if len(steps) > 1 and stream is None:
        with open_job(steps[-1], engine, sampling, None) as job:
            if job.finished:
                tell_finished(job, report=bool(told.paths))
                return
    for step in steps:
        with open_job(step, engine, sampling, stream if step.last else None) as job:
            if not job.finished:
                yield step, job
            elif step.last:
                tell_finished(job, report=bool(told.paths))


def open_job(step: StepJob, engine: EngineFlags, sampling: SamplingFlags, stream: LineFile | None) -> Preparation:
    """Raises UsageError for what is wrong with the job as a whole."""
    from pybatch.jobs.preparation import OtherJobError, prepare

    with usage_errors():
        try:
            return prepare(
                step.rows,
                step.destination,
                model=engine.model,
                engine=engine.given(),
                sampling=sampling.given(),
                stream=stream,
            )
        except OtherJobError as error:
            show_differences(error)
            raise
