"""pybatch run --dry-run: what a job will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from pybatch.cli import exit_codes
from pybatch.cli.command import CommandError, load, of_file, one_line, stderr, usage_errors
from pybatch.cli.preview import shown
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.engine import SamplingParams
    from pybatch.jobs.estimate.estimate import Estimate
    from pybatch.jobs.preparation import Preparation
    from pybatch.jobs.report.files import ReportFiles
    from pybatch.tune.cost import Prices


def show_dry_run(
    prepared: Preparation,
    cache: Path | None,
    sampling: SamplingFlags,
    engine: EngineFlags,
    told: ReportFiles,
    before_it_prints: Callable[[], None],
) -> None:
    """told: where the figures go too. before_it_prints: frees standard output, where the estimate goes."""
    from pybatch.jobs.report.report import write_json

    llm, params = load(engine, sampling)
    estimate = estimate_job(llm, engine.model, prepared, params, cache)
    before_it_prints()
    show_estimate(estimate, told.prices, known_bad=prepared.checked.bad.total())
    if told.json is not None:
        with failures():
            write_json(told.json, estimate.to_json(told.prices))
    raise typer.Exit(exit_codes.FAILED_ROWS if estimate.rows_failed else exit_codes.OK)


def estimate_job(llm: LLM, model: str, prepared: Preparation, params: SamplingParams, cache: Path | None) -> Estimate:
    """Of what is left of the job."""
    from pybatch.jobs.checked_rows import for_model
    from pybatch.jobs.estimate.estimate import estimate
    from pybatch.jobs.fingerprint import model_fingerprint
    from pybatch.model.checkpoints.find import find_model
    from pybatch.tune.calibration import calibrated

    with usage_errors():
        dialect = for_model(prepared.dialect, llm.get_tokenizer())
    with ExitStack() as opened, failures():
        answers = None
        if cache is not None and cache.is_dir():  # else there is nothing in it, and it is not to be made
            answers = opened.enter_context(prepared.answers(llm.session, cache))
        with stderr.status("Measuring this machine"):
            times = calibrated(llm.engine, model_fingerprint(find_model(model)))
        with stderr.status("Reading the rows, and answering some of them"):
            return estimate(
                llm,
                dialect.prepared(prepared.source.rows(), wait=True),
                dialect,
                params,
                times,
                checked=prepared.checked,
                done=prepared.has_done,
                answers=answers,
            )


@contextmanager
def failures() -> Iterator[None]:
    """Turns what ends the estimate before its time into one line."""
    try:
        yield
    except Exception as error:
        what = of_file(error) if isinstance(error, OSError) and error.filename is not None else one_line(error)
        raise CommandError(f"the job cannot be estimated: {what}") from error


def show_estimate(estimate: Estimate, prices: Prices, known_bad: int) -> None:
    """On standard output. known_bad: how many of the bad rows the user knows of."""
    from pybatch.jobs.estimate.table import estimate_table

    out = Console(highlight=False, markup=False, soft_wrap=True)
    if estimate.rows_failed > known_bad:
        for kind in estimate.errors.values():
            for message in kind.first:
                out.print(printable(message))
    out.print(estimate_table(estimate, prices))
    for number, prompt in enumerate(estimate.prompts, start=1):
        out.print(f"\nPrompt {number}, as the model sees it:\n{shown(prompt)}")
