"""The pybatch command: its commands are in the modules of their names."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import pybatch
from pybatch.cli.chat import chat
from pybatch.cli.command import EXIT_INTERRUPTED
from pybatch.cli.env import env
from pybatch.cli.run import run

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")


def main() -> None:
    """Exits with 0, 1 (some rows failed), 2 (usage) or 130 (Ctrl-C)."""
    try:
        sys.exit(app(prog_name="pybatch", standalone_mode=False))
    except typer.TyperException as error:
        if message := error.format_message():
            print(f"pybatch: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)


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
    """Run language models over many prompts at once."""


for command in (run, chat, env):
    app.command()(command)
