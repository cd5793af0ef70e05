"""A prompt's variables against the rows of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pybatch.jobs.rows import Row
from pybatch.prompts.errors import PromptError
from pybatch.prompts.prompt import Prompt

SHOWN = 5  # places of a fault


@dataclass
class Tally:
    """How many rows something holds for, and the places of the first of them."""

    rows: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.rows += 1
        if len(self.places) < SHOWN:
            self.places.append(place)

    def __str__(self) -> str:
        more = f" and {self.rows - len(self.places):,} more" if self.rows > len(self.places) else ""
        return ", ".join(self.places) + more


@dataclass
class VariableReport:
    """variables, optional: as Prompt's, each with the number of rows that have it. missing: variables that rows lack.
    surplus: fields that are no variables. faults: whatever else is wrong with rows, by its message.
    """

    prompt: str
    rows: int = 0
    strict: bool = False
    variables: dict[str, int] = field(default_factory=dict)
    optional: dict[str, int] = field(default_factory=dict)
    missing: dict[str, Tally] = field(default_factory=dict)
    surplus: dict[str, Tally] = field(default_factory=dict)
    faults: dict[str, Tally] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether every row can be filled in: surplus fields count where the prompt is strict."""
        return not (self.missing or self.faults or (self.strict and self.surplus))

    def to_json(self) -> dict[str, Any]:
        def tallies(of: dict[str, Tally]) -> dict[str, Any]:
            return {name: {"rows": tally.rows, "first": tally.places} for name, tally in of.items()}

        return {
            "prompt": self.prompt,
            "rows": self.rows,
            "fits": self.fits,
            "strict": self.strict,
            "variables": self.variables,
            "optional": self.optional,
            "missing": tallies(self.missing),
            "surplus": tallies(self.surplus),
            "faults": tallies(self.faults),
        }


def check_variables(prompt: Prompt, rows: Iterable[Row], *, strict: bool = False) -> VariableReport:
    """Looks at every row. strict: surplus fields are errors, as those of a prompt that says so itself."""
    report = VariableReport(prompt.tag, strict=strict or prompt.config.strict)
    report.variables = dict.fromkeys(prompt.variables, 0)
    report.optional = dict.fromkeys(prompt.optional, 0)
    for row in rows:
        report.rows += 1
        if row.error is not None:
            report.faults.setdefault(row.error, Tally()).add(row.place)
            continue
        lacking = [name for name in prompt.variables if name not in row.fields]
        for counts in (report.variables, report.optional):
            for name in counts:
                counts[name] += name in row.fields
        tally(report.missing, lacking, row.place)
        tally(report.surplus, prompt.surplus(row.fields), row.place)
        if not lacking:
            try:
                prompt.check(row.fields)
            except PromptError as error:
                if not (prompt.config.strict and error.variable in report.surplus):
                    tally(report.faults, [str(error)], row.place)
    return report


def tally(into: dict[str, Tally], names: Sequence[str], place: str) -> None:
    for name in names:
        into.setdefault(name, Tally()).add(place)
