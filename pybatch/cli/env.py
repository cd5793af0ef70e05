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
    table = Table(show_header=False)
    for name, value in known.items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif name.startswith("memory_") and isinstance(value, int):
            value = f"{value / 2**30:.1f} GiB"
        table.add_row(
            name.replace("_", " ") if name.islower() else name, "not set" if value is None else printable(str(value))
        )
    return table
