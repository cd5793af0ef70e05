"""pybatch compare: the same rows answered with several prompts, or by several models, and what separates them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pybatch.cli import exit_codes
from pybatch.cli.answering import AT_ONCE, show_differences, tell, to_go_on
from pybatch.cli.command import (
    CommandError,
    UsageError,
    leave_deleted_folder,
    loading_errors,
    of_file,
    one_line,
    stdout,
    tell_of,
    usage_errors,
)
from pybatch.cli.flags import CostFlags, SamplingFlags, SharedEngineFlags, argument, option, takes
from pybatch.cli.run import InputFormat
from pybatch.cli.signals import ending_at_once, ending_in_order, exit_code
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.prompts.comparison.task import Task

comparing = partial(option, "Comparing")
statistics = partial(option, "Statistics")
results = partial(option, "Results")

FOLDER = "comparisons"  # of the working folder: where comparisons go that name no other place


@takes(sampling=SamplingFlags, engine=SharedEngineFlags, cost=CostFlags)
def compare(
    prompts: Annotated[
        list[str],
        argument("Files of prompts, or names of those in prompts/. One, for several models.", "PROMPT"),
    ],
    data: Annotated[str, comparing("The rows: as of pybatch run.", metavar="ROWS")],
    score: Annotated[
        list[str],
        comparing(
            "How answers are scored; may be repeated: exact:TEXT, iexact:TEXT, contains:TEXT, icontains:TEXT, "
            "tokens:TEXT, numeric:TEXT[:TOLERANCE] (in TEXT {field} is a row's field), regex:PATTERN, schema:FILE, "
            "judge, judge:CRITERION, MODULE:FUNCTION.",
            metavar="SCORER",
        ),
    ],
    model: Annotated[
        list[str] | None,
        comparing(
            "Of all variants; or, repeated, of each. Default: what the prompt says, else smollm2-135m.",
            metavar="MODEL",
        ),
    ] = None,
    input_format: Annotated[InputFormat | None, comparing("Of the rows' files.")] = None,
    repeats: Annotated[int, comparing("Answer each row so often, each time with another seed. Default: 1.", min=1)] = 1,
    judge_model: Annotated[str | None, comparing("The judge. Default: the first variant's model.")] = None,
    effect: Annotated[float, statistics("The least difference of mean scores that matters. Default: 0.05.")] = 0.05,
    power: Annotated[float, statistics("The probability with which it is to be found. Default: 0.8.")] = 0.8,
    confidence: Annotated[
        float, statistics("Of the intervals; what is missing to 1 is the tests' level. Default: 0.95.")
    ] = 0.95,
    output: Annotated[
        str | None,
        results(
            f"A folder for answers and scores. Default: one in {FOLDER}, of the comparison's own.",
            "--output",
            "-o",
            metavar="FOLDER",
        ),
    ] = None,
    report: Annotated[str | None, results("Write a report, one HTML file.", metavar="PATH")] = None,
    json_file: Annotated[str | None, results("Write all figures as JSON.", "--json", metavar="FILE")] = None,
    fresh: Annotated[bool, results("Answer all rows again.", "--fresh")] = False,
    retry_errors: Annotated[
        bool, results("Run the rows again that failed in an earlier run.", "--retry-errors")
    ] = False,
    history: Annotated[
        str | None,
        results(
            "The SQLite file in which the prompts' runs are recorded; off: nowhere. Default: history.sqlite in their "
            "folder.",
            metavar="FILE",
        ),
    ] = None,
    latitude: Annotated[
        str | None,
        results(
            "Send traces, scores and an experiment to this project of Latitude; the key is in LATITUDE_API_KEY.",
            metavar="PROJECT",
        ),
    ] = None,
    grace: Annotated[
        float, results("Seconds that running rows have to finish after Ctrl-C or SIGTERM. Default: 10.", min=0)
    ] = 10.0,
    *,
    sampling: SamplingFlags,
    engine: SharedEngineFlags,
    cost: CostFlags,
) -> None:
    """Compare prompts, or models, on the same rows.

    Each row is answered with each variant, by the same seed, in one run of one engine; variants with another model have
    an engine of their own, one after another. Sampling flags go before what the prompts say.

    Each scorer gives each answer a number, mostly 0 to 1. A variant's score is the mean, with a bootstrap interval; two
    variants differ by the mean difference, row by row, with an interval, the p value of random signs (by Holm where
    there are more than two variants), wins, ties and losses, the power for --effect, and how many more rows --power
    takes. A judge sees two answers at a time, in both orders.

    What is done is in a folder: whatever ends the command, the same one goes on where it was. Other scorers of the same
    answers need no model.

    Exit code: as pybatch run's; 1, some rows have no answer.
    """
    from pybatch.jobs.preparation import OtherJobError
    from pybatch.jobs.report.files import ReportFiles
    from pybatch.machine.folders import make_folder
    from pybatch.prompts.comparison.jobs import ComparisonStoppedError, Engines, JobFolder, Running
    from pybatch.prompts.comparison.tables import notes, tables
    from pybatch.prompts.comparison.task import at_latitude, run, tell_of
    from pybatch.prompts.history.recording import record, runs_of

    with ending_at_once("Interrupted: nothing was answered."), usage_errors():
        told = ReportFiles(report, json_file, cost.prices())
        expect_places(told)
        task = task_of(prompts, model or [], data, input_format, score, repeats, judge_model,
                       (effect, power, confidence), sampling, engine, told)  # fmt: skip
        path = Path(output or f"{FOLDER}/{task.key}")
        make_folder("output", path)
        at = at_latitude(task, latitude, path, tell)
    with ending_in_order(AT_ONCE) as stop, comparing_errors():
        running = Running(stop.requested, grace, tell, show_progress=True, lines=True, latitude=at)
        folder = JobFolder(path, engine.given(), Engines(partial(load, engine)), running, fresh, retry_errors)
        try:
            comparison = run(task, folder)
        except ComparisonStoppedError as stopped:
            assert stop.signum is not None
            tell(f"Interrupted: {stopped} in {path}.")
            tell(to_go_on())
            raise typer.Exit(exit_code(stop.signum)) from None
        except OtherJobError as error:
            show_differences(error)
            raise
        tell_of(task, comparison, told)
        record(runs_of(comparison, task, data), history, tell)
    console = stdout()
    for table in tables(comparison):
        console.print(table)
    for note in notes(comparison):
        console.print(note)
    tell(f"Answers and scores are in {path}.")
    if any(each.errors for each in comparison.variants):
        raise typer.Exit(exit_codes.FAILED_ROWS)


def task_of(
    prompts: list[str],
    models: list[str],
    data: str,
    input_format: InputFormat | None,
    scores: list[str],
    repeats: int,
    judge_model: str | None,
    plan: tuple[float, float, float],
    sampling: SamplingFlags,
    engine: SharedEngineFlags,
    told: Any,
) -> Task:
    """Raises ValueError and OSError."""
    from pybatch.jobs.sources import open_source
    from pybatch.prompts.comparison.figures import Plan
    from pybatch.prompts.comparison.scorers.parse import scorers_of
    from pybatch.prompts.comparison.task import DEFAULT_MODEL, Task
    from pybatch.prompts.comparison.variants import variants_of

    return Task(
        variants_of(prompts, models, DEFAULT_MODEL, sampling.given()),
        list(open_source(data, input_format and input_format.value).rows()),
        scorers_of(scores),
        sampling.given(),
        engine.given(),
        repeats,
        judge_model,
        Plan(*plan),
        told.prices,
    )


def expect_places(told: Any) -> None:
    """Raises OSError if a report cannot be put where it is to go."""
    from pybatch.jobs.disk.publishing import expect_place

    for path in told.paths.values():
        expect_place(path)
    if told.html is not None and told.html == told.json:
        raise FileExistsError(f"--report and --json: expected two files, got {told.html} twice")


def load(engine: SharedEngineFlags, model: str | Path) -> LLM:
    from pybatch.jobs.preparation import discard_unused_journals

    def interrupted() -> str:
        discard_unused_journals()
        return printable(f"Interrupted while {model} was loaded; what is done is saved. {to_go_on()}")

    leave_deleted_folder()
    with ending_at_once(interrupted), usage_errors(), loading_errors(str(model)):
        from pybatch.api.llm import LLM

        llm = LLM(model, **engine.given())
        tell_of(llm.session, model)
        return llm


@contextmanager
def comparing_errors() -> Iterator[None]:
    """Turns what ends a comparison before its time into one line."""
    try:
        yield
    except (typer.TyperException, typer.Exit):
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        of = of_file(error) if isinstance(error, OSError) and error.filename is not None else one_line(error)
        raise CommandError(f"the comparison cannot go on: {of}; what is done is saved") from error
