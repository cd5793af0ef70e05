"""pybatch prompts: prompts in files, looked at and tried before a job runs."""

from __future__ import annotations

import os
import sys
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pybatch.cli import exit_codes
from pybatch.cli.command import NOTHING_ANSWERED, CommandError, load, stdout, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, argument, option, takes
from pybatch.cli.prompt_flag import with_model
from pybatch.cli.prompt_history import history
from pybatch.cli.signals import ending_at_once
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pybatch.api.llm import LLM
    from pybatch.engine import SamplingParams
    from pybatch.jobs.rows import Row
    from pybatch.prompts import Prompt
    from pybatch.prompts.checking import VariableReport
    from pybatch.prompts.trying import TriedStep

prompts = typer.Typer(no_args_is_help=True, help="Look at prompts in files, and try them.")
prompts.command()(history)
what = partial(option, "Prompt and rows")

FILE = argument("A file, or a name in the folder prompts.", "FILE-OR-NAME")


@prompts.command("list")
def list_prompts(
    folder: Annotated[str, what("Of named prompts.")] = "prompts",
    json_file: Annotated[str | None, what("Write the list as JSON.", "--json", metavar="FILE")] = None,
) -> None:
    """List the named prompts, with their versions and variables.

    Exit code: as pybatch run's.
    """
    with usage_errors():
        from pybatch.prompts import PromptError, names
        from pybatch.prompts import load as load_prompt

        if not os.path.isdir(folder):
            raise ValueError(f"--folder: expected a folder of prompts, got {folder}")
        found: list[dict[str, Any]] = []
        for name in names(folder):
            try:
                prompt = load_prompt(name, folder)
            except PromptError as error:
                found.append({"name": name, "error": str(error)})
                continue
            found.append(
                {
                    "name": name,
                    "version": prompt.version,
                    "language": prompt.language,
                    "variables": [*prompt.variables],
                    "steps": [step.name for step in prompt.steps],
                }
            )
        write(json_file, found)
    table = Table()
    for column in ("prompt", "version", "language", "variables", "steps"):
        table.add_column(column)
    for each in found:
        if "error" in each:
            table.add_row(printable(each["name"]), printable(f"error: {each['error']}"))
        else:
            lists = (", ".join(each["variables"]), ", ".join(each["steps"]))
            table.add_row(*map(printable, (each["name"], each["version"], each["language"], *lists)))
    stdout().print(table)


@prompts.command()
def check(
    prompt: Annotated[str, FILE],
    data: Annotated[str, what("The rows: a file, a folder or a glob in quotes.", "--data", "-d", metavar="ROWS")],
    strict: Annotated[bool, what("Fields that are no variables are errors.", "--strict")] = False,
    json_file: Annotated[str | None, what("Write the findings as JSON.", "--json", metavar="FILE")] = None,
) -> None:
    """Compare a prompt's variables with the fields of every row.

    Exit code: 0, every row can be filled in; 1, some cannot; otherwise as pybatch run's.
    """
    with usage_errors():
        from pybatch.jobs.sources import open_source
        from pybatch.prompts import load as load_prompt
        from pybatch.prompts.checking import check_variables

        report = check_variables(load_prompt(prompt), open_source(data).rows(), strict=strict)
        write(json_file, report.to_json())
    show_report(report)
    if not report.fits:
        raise typer.Exit(exit_codes.FAILED_ROWS)


@takes(sampling=SamplingFlags, engine=EngineFlags)
def try_prompt(
    context: typer.Context,
    prompt: Annotated[str, FILE],
    row: Annotated[list[int] | None, what("Number of a row, from 0; may be repeated. Default: 0.", "--row")] = None,
    data: Annotated[str | None, what("The rows. Default: one that is empty.", "--data", "-d", metavar="ROWS")] = None,
    render_only: Annotated[bool, what("Load no model: show the messages alone.", "--render-only")] = False,
    json_file: Annotated[str | None, what("Write what was shown as JSON.", "--json", metavar="FILE")] = None,
    *,
    sampling: SamplingFlags,
    engine: EngineFlags,
) -> None:
    """Fill in a prompt with one row or a few, show the messages and their tokens, and run them.

    Of a chain every step is shown, with the answer that the next one has.

    Exit code: 0; 1, a step has no answer; otherwise as pybatch run's.
    """
    with usage_errors():
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.prompts import load as load_prompt
        from pybatch.prompts.trying import try_rows

        loaded = load_prompt(prompt)
        if json_file is not None:
            expect_place(json_file)
        chosen = choose(data, row or [])
        for each in chosen:
            expect_fits(loaded, each)
    model: tuple[LLM, SamplingParams] | None = None
    if not render_only:
        with ending_at_once(NOTHING_ANSWERED):
            model = load(with_model(loaded, engine, context), sampling.over(loaded.config.sampling))
    with usage_errors():
        tried = [try_rows(loaded, each, model) for each in chosen]
        write(json_file, [{"prompt": loaded.tag, "row": each.index, "steps": [step.to_json() for step in steps]}
                          for each, steps in zip(chosen, tried, strict=True)])  # fmt: skip
    for each, steps in zip(chosen, tried, strict=True):
        show_steps(loaded, each, steps)
    if failed := [step.error for steps in tried for step in steps if step.error is not None]:
        raise CommandError(failed[0], exit_codes.FAILED_ROWS)


prompts.command("try")(try_prompt)


def choose(data: str | None, numbers: Sequence[int]) -> list[Row]:
    """The rows of these numbers; of none, the first. Raises ValueError for one that is not there or cannot be read."""
    from pybatch.jobs.rows import Row
    from pybatch.jobs.sources import open_source

    if data is None:
        if numbers:
            raise ValueError("--row: is a number in --data, which is not given")
        return [Row(0, "row 0", 0, {})]
    wanted = set(numbers or [0])
    if min(wanted) < 0:
        raise ValueError(f"--row: expected a number from 0, got {min(wanted)}")
    most = min(max(wanted), sys.maxsize - 1)
    found = {each.index: each for each in islice(open_source(data).rows(), most + 1) if each.index in wanted}
    for number in numbers or [0]:
        if number not in found:
            raise ValueError(f"--row: {data} has no row {number}")
        if (error := found[number].error) is not None:
            raise ValueError(f"{found[number].place}: {error}")
    return [found[number] for number in numbers or [0]]


def expect_fits(prompt: Prompt, row: Row) -> None:
    """Raises ValueError, with the row's place, if it cannot be filled in."""
    try:
        prompt.check(row.fields)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None


def show_report(report: VariableReport) -> None:
    table = Table(title=printable(f"{report.prompt}: {report.rows:,} rows"), title_justify="left")
    for column in ("", "field", "rows"):
        table.add_column(column, justify="right" if column == "rows" else "left")
    table.add_column("where")
    for kind, counts in (("variable", report.variables), ("optional", report.optional)):
        for name, rows in counts.items():
            table.add_row(kind, printable(name), f"{rows:,}", "")
    surplus = "surplus" if report.strict else "not a variable"
    for kind, tallies in (("missing", report.missing), (surplus, report.surplus), ("fault", report.faults)):
        for name, tally in tallies.items():
            table.add_row(kind, printable(name), f"{tally.rows:,}", printable(str(tally)))
    stdout().print(table)
    stdout().print("Every row can be filled in." if report.fits else "Some rows cannot be filled in.")


def show_steps(prompt: Prompt, row: Row, steps: Sequence[TriedStep]) -> None:
    out = stdout()
    for step in steps:
        name = f", step {step.name}" if prompt.is_chain else ""
        out.rule(printable(f"{prompt.tag}, {row.place}{name}"), align="left", characters="-")
        for role, text in step.shown():
            out.print(printable(f"{role}: " if role else "") + printable(text, keep="\n\t"))
        if step.error is not None:
            out.print(printable(f"error: {step.error}"))
        if step.prompt_tokens is not None:
            out.print(f"({step.prompt_tokens:,} prompt tokens)")
        if step.answer is not None:
            out.print(f"-> {printable(step.answer, keep=chr(10) + chr(9))}")
            out.print(f"({step.output_tokens:,} output tokens, {step.finish_reason})")


def write(path: str | None, value: Any) -> None:
    if path is not None:
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.jobs.report.report import write_json

        expect_place(path)
        write_json(path, value)
