"""A comparison's report: one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pybatch.jobs.report.report import readable_settings, template, write_page
from pybatch.machine.facts import facts, readable
from pybatch.prompts.comparison.figures import Comparison, Pair, RowApart
from pybatch.prompts.comparison.interval_charts import IntervalChart, Shown, interval_chart
from pybatch.prompts.comparison.tables import (
    interval,
    notes,
    p_value,
    pair_cells,
    pair_columns,
    variant_cells,
    variant_columns,
)

COLORS = ("first", "second", "third", "fourth")
LONGEST = 4000  # characters of an answer, or of a field, that are shown


@dataclass(frozen=True, slots=True)
class AnswerShown:
    variant: str
    text: str
    marks: Sequence[str]


def write_report(path: str, comparison: Comparison, title: str, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the report, all at once: a file that is there is replaced. settings: names and values in groups; values
    that are None are left out. All text is escaped. Raises OSError, with the path."""
    page = template("compare.html", "pybatch.prompts.comparison").render(
        title=title,
        written=datetime.now().astimezone(),
        comparison=comparison,
        charts=charts(comparison),
        verdicts=[verdict(pair, comparison) for pair in comparison.pairs],
        variant_columns=variant_columns(comparison),
        variant_cells={each.name: variant_cells(comparison, each) for each in comparison.variants},
        pair_columns=pair_columns(comparison),
        pair_cells=[pair_cells(comparison, pair) for pair in comparison.pairs],
        notes=list(notes(comparison)),
        apart=[(row, {name: shown(value) for name, value in row.fields.items()}, answers_of(row, comparison))
               for row in comparison.apart],
        interval=interval,
        settings={group: readable_settings(values) for group, values in settings.items()},
        facts=readable(facts()),
    )  # fmt: skip
    write_page(path, page)


def verdict(pair: Pair, comparison: Comparison) -> str:
    """One sentence."""
    better = pair.better(comparison.plan)
    found = pair.difference
    if better is not None:
        other = pair.first if better == pair.second else pair.second
        return f"{better} scores higher than {other} (p = {p_value(found.p_holm)})"
    more = pair.rows_still_needed
    if more is None:
        return f"{pair.first} and {pair.second} score alike in every row"
    if more:
        return (
            f"Between {pair.first} and {pair.second} no difference is shown; to find one of "
            f"{comparison.plan.effect:g} takes about {more:,} more rows"
        )
    return (
        f"Between {pair.first} and {pair.second} no difference is shown, and one of {comparison.plan.effect:g} would "
        "probably have been found"
    )


def charts(comparison: Comparison) -> list[IntervalChart]:
    level = f"{comparison.plan.confidence:.0%}"
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(comparison.names)}
    made = [
        interval_chart(
            f"Mean score: {scorer}",
            f"with its {level} interval",
            [Shown(name, each, colors[name], f"{name}: {interval(each)}") for name, each in of.items()],
        )
        for scorer, of in comparison.estimates.items()
    ]
    made += [
        interval_chart(
            f"Difference: {scorer}",
            f"mean of the second's score less the first's, row by row, with its {level} interval",
            [
                Shown(
                    f"{pair.second} less {pair.first}",
                    pair.difference.estimate,
                    "fourth",
                    f"{interval(pair.difference.estimate, signed=True)}, p = {p_value(pair.difference.p_holm)}",
                )
                for pair in comparison.pairs
                if pair.scorer == scorer
            ],
            differences=True,
        )
        for scorer in comparison.scorers
    ]
    return [chart for chart in made if chart is not None]


def answers_of(row: RowApart, comparison: Comparison) -> list[AnswerShown]:
    return [
        AnswerShown(
            name,
            shown(row.answers.get(name, "")),
            [
                f"{scorer}: {'-' if each.score is None else f'{each.score:.3g}'}"
                + (f", {each.feedback}" if each.feedback else "")
                for scorer, of in row.scores.items()
                if (each := of.get(name)) is not None
            ],
        )
        for name in comparison.names
    ]


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
