"""pybatch bench step: where a decode step's time goes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pybatch.cli.command import load, named, stderr, stdout, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, argument, option, takes
from pybatch.cli.signals import ending_at_once

if TYPE_CHECKING:
    from collections.abc import Mapping

measured = partial(option, "What is measured")
MOST = 4096  # sequences, as of pybatch plan


@takes(engine=EngineFlags)
def step(
    command: typer.Context,
    name: Annotated[str | None, argument("The model, as --model.", "MODEL")] = None,
    sequences: Annotated[
        str, measured("Sequences in a step, with commas. Default: 1,8,32,64.", metavar="N,N,...")
    ] = "1,8,32,64",
    context: Annotated[int, measured("Tokens that each attends to. Default: 32.", min=1)] = 32,
    steps: Annotated[
        int, measured("Steps of each size, of which the median is shown. Default: 32.", min=1, max=4096)
    ] = 32,
    json_file: Annotated[str | None, measured("Write the figures as JSON.", "--json", metavar="FILE")] = None,
    *,
    engine: EngineFlags,
) -> None:
    """Show where a decode step's time goes: each kernel, and the Python around them.

    Exit code: as pybatch run's.
    """
    with usage_errors():
        from pybatch.api.engine_args import EngineArgs
        from pybatch.engine.step_parts import decode_step, expect_room
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.jobs.report.report import write_json
        from pybatch.machine.device import find_device

        engine = named(engine, name, command)
        sizes = numbers("sequences", sequences)
        config = EngineArgs(**engine.given())
        if not config.tune:  # which chooses how many there are
            expect_room(config.on(find_device(config.device).type), sizes)
        if json_file is not None:
            expect_place(json_file)
    with ending_at_once("Interrupted: nothing was measured."):
        llm, _ = load(engine, SamplingFlags())
        with usage_errors(), stderr.status("Measuring steps"):
            parts = {size: decode_step(llm.engine, size, context, steps) for size in sizes}
    with usage_errors():
        if json_file is not None:
            write_json(json_file, {"model": engine.model, "context": context, "seconds": parts, **llm.session.settings})
    stdout().print(step_table(engine.model, parts))


def numbers(name: str, text: str) -> list[int]:
    """Sizes of batches. Raises ValueError."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > MOST:
        raise ValueError(f"{name}: expected numbers from 1 to {MOST} with commas, such as 1,8,64, got {text!r:.200}")
    return found


def step_table(model: str, parts: Mapping[int, Mapping[str, float]]) -> Table:
    table = Table(title=f"ms of a decode step of {model}, by sequences", title_justify="left")
    table.add_column("part")
    for size in parts:
        table.add_column(str(size), justify="right")
    for part in dict.fromkeys(part for of_size in parts.values() for part in of_size if part != "step"):
        seconds = [(each.get(part, 0.0), each["step"]) for each in parts.values()]
        cells = (f"{own * 1e3:.2f} ({own / whole:4.0%})" for own, whole in seconds)
        table.add_row(part, *cells)
    table.add_row("step", *(f"{each['step'] * 1e3:.2f}" for each in parts.values()))
    return table
