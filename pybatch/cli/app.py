"""The commands, each in the module of its name."""

from __future__ import annotations

from typing import Annotated

import typer

import pybatch
from pybatch.cli.bench import bench
from pybatch.cli.chat import chat
from pybatch.cli.compare import compare
from pybatch.cli.env import env
from pybatch.cli.plan import plan
from pybatch.cli.prompts import prompts
from pybatch.cli.run import run
from pybatch.cli.serve import serve

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


def print_version(wanted: bool) -> None:
    if wanted:
        print(pybatch.__version__)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run language models over many prompts at once.

    Exit codes are those that pybatch run --help tells.
    """


for command in (run, compare, plan, serve, chat, env):
    app.command()(command)
app.add_typer(bench, name="bench")
app.add_typer(prompts, name="prompts")
