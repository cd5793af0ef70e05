"""pybatch bench: what a model does on this machine, measured."""

from __future__ import annotations

import typer

from pybatch.cli.bench.step import step
from pybatch.cli.bench.sweep import sweep

bench = typer.Typer(no_args_is_help=True, help="Measure a model on this machine.")


@bench.callback()
def commands() -> None:
    """Measure a model on this machine."""


for command in (step, sweep):
    bench.command()(command)
