"""pybatch env: the facts that a bug report should include."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pybatch.cli.streams import printable


def env(json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show versions, processor, instruction sets, memory and devices."""
    from pybatch.machine.facts import facts

    known = facts()
    if json_output:
        print(json.dumps(known, indent=2))
    else:
        Console(highlight=False, markup=False).print(facts_table(known))


def facts_table(known: dict[str, Any]) -> Table:
    from pybatch.machine.facts import readable

    table = Table(show_header=False)
    for name, value in readable(known).items():
        table.add_row(name, printable(value))
    return table
