"""pybatch run --dry-run: what a job will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    from pybatch.jobs.check import Checked
    from pybatch.jobs.checked_rows import CheckedRows
    from pybatch.jobs.dialect import Dialect
    from pybatch.jobs.estimate.estimate import Estimate
    from pybatch.jobs.rows import Source


def show_dry_run(
    rows: CheckedRows, sampling: SamplingFlags, engine: EngineFlags, before_it_prints: Callable[[], None]
) -> None:
    """before_it_prints: frees standard output, where the estimate goes."""
    from pybatch.jobs.checked_rows import for_model

    for line in rows.checked.lines():
        stderr.print(printable(line))
    llm, params = load(engine, sampling)
    with usage_errors():
        dialect = for_model(rows.dialect, llm.get_tokenizer())
    estimate = estimate_job(llm, engine.model, rows.source, dialect, params, rows.checked)
    before_it_prints()
    show_estimate(estimate, told=rows.checked.bad.total())
    raise typer.Exit(exit_codes.FAILED_ROWS if estimate.rows_failed else exit_codes.OK)


def estimate_job(
    llm: LLM, model: str, source: Source, dialect: Dialect, params: SamplingParams, checked: Checked
) -> Estimate:
    from pybatch.jobs.estimate.estimate import estimate
    from pybatch.jobs.fingerprint import model_fingerprint
    from pybatch.model.checkpoints.find import find_model
    from pybatch.tune.calibration import calibrated

    with failures():
        with stderr.status("Measuring this machine"):
            times = calibrated(llm.engine, model_fingerprint(find_model(model)))
        with stderr.status("Reading the rows, and answering some of them"):
            return estimate(llm, source.rows(), dialect, params, times, checked=checked)


@contextmanager
def failures() -> Iterator[None]:
    """Turns what ends the estimate before its time into one line."""
    try:
        yield
    except Exception as error:
        what = of_file(error) if isinstance(error, OSError) and error.filename is not None else one_line(error)
        raise CommandError(f"the job cannot be estimated: {what}") from error


def show_estimate(estimate: Estimate, told: int) -> None:
    """On standard output. told: how many of the bad rows the user knows of."""
    from pybatch.jobs.estimate.table import estimate_table

    out = Console(highlight=False, markup=False, soft_wrap=True)
    if estimate.rows_failed > told:
        for kind in estimate.errors.values():
            for message in kind.first:
                out.print(printable(message))
    out.print(estimate_table(estimate))
    for number, prompt in enumerate(estimate.prompts, start=1):
        out.print(f"\nPrompt {number}, as the model sees it:\n{shown(prompt)}")
