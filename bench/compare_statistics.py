"""Whether the statistics of `pybatch compare` hold what they say, on scores whose truth is known.

    python bench/compare_statistics.py [--comparisons 1000] [--resamples 1999] [--json PATH]

Without a difference 5% of the comparisons should find one; intervals of 95% should have the true difference in them,
with a difference and without; and the number of rows that is planned for an effect should find it as often as asked.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pybatch.prompts.comparison import statistics
from pybatch.prompts.comparison.statistics import difference, rows_for

Values = NDArray[np.float64]
POWER = 0.8


def right_or_wrong(rate: float) -> Callable[[np.random.Generator, int, float], tuple[Values, Values]]:
    """Scores of 0 and 1; half of the rows are as hard for both variants."""

    def draw(random: np.random.Generator, rows: int, effect: float) -> tuple[Values, Values]:
        shared = random.random(rows) < 0.5
        first, other = random.random(rows), random.random(rows)
        second = np.where(shared, first, other)
        return (first < rate).astype(float), (second < rate + effect).astype(float)

    return draw


def similarity(random: np.random.Generator, rows: int, effect: float) -> tuple[Values, Values]:
    """Scores between 0 and 1, that go with the row."""
    row = random.beta(2, 2, rows) * 0.6 + 0.15
    return row + random.uniform(-0.15, 0.15, rows), row + random.uniform(-0.15, 0.15, rows) + effect


def skewed(random: np.random.Generator, rows: int, effect: float) -> tuple[Values, Values]:
    """Numbers without an upper limit, such as a function of the user's may give; the difference is symmetric."""
    return random.exponential(1.0, rows), random.exponential(1.0, rows) + effect


@dataclass(frozen=True)
class Kind:
    """effect: that the comparisons with a difference have, and that rows are planned for."""

    name: str
    draw: Callable[[np.random.Generator, int, float], tuple[Values, Values]]
    rows: int
    effect: float


KINDS = (
    Kind("right or wrong, 55%, 30 rows", right_or_wrong(0.55), 30, 0.3),
    Kind("right or wrong, 55%, 100 rows", right_or_wrong(0.55), 100, 0.15),
    Kind("right or wrong, 85%, 150 rows", right_or_wrong(0.85), 150, 0.1),
    Kind("similarity, 20 rows", similarity, 20, 0.08),
    Kind("similarity, 100 rows", similarity, 100, 0.04),
    Kind("skewed, 50 rows", skewed, 50, 0.5),
)


def simulate(kind: Kind, comparisons: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    many = kind.draw(random, 1_000_000, kind.effect)
    effect, deviation = float((many[1] - many[0]).mean()), float((many[1] - many[0]).std())
    planned = rows_for(effect, deviation, power=POWER)
    assert planned is not None
    null = [difference(*kind.draw(random, kind.rows, 0.0), seed=i) for i in range(comparisons)]
    other = [difference(*kind.draw(random, kind.rows, kind.effect), seed=i) for i in range(comparisons)]
    found = [difference(*kind.draw(random, planned, kind.effect), seed=i) for i in range(comparisons)]
    return {
        "kind": kind.name,
        "rows": kind.rows,
        "comparisons": comparisons,
        "rejected_without_difference": share(each.p <= 0.05 for each in null),
        "covered_without_difference": share(each.estimate.low <= 0 <= each.estimate.high for each in null),
        "effect": effect,
        "covered_with_difference": share(each.estimate.low <= effect <= each.estimate.high for each in other),
        "rows_planned": planned,
        "power_planned": POWER,
        "power_found": share(each.p <= 0.05 for each in found),
    }


def share(of: Any) -> float:
    return float(np.mean(list(of)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=1999, help="of each; pybatch compare takes 9,999")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    statistics.RESAMPLES = arguments.resamples
    results = []
    for seed, kind in enumerate(KINDS):
        results.append(simulate(kind, arguments.comparisons, seed))
        if arguments.json:
            arguments.json.write_text(
                json.dumps({"resamples": arguments.resamples, "results": results}, indent=1) + "\n"
            )
    chance = 2 * math.sqrt(0.05 * 0.95 / arguments.comparisons)
    table = Table(title=f"{arguments.comparisons:,} comparisons of each kind; chance is ±{chance:.1%} wide at 5%")
    table.add_column("scores")
    for name in ("rejected", "covered", "covered, with a difference", "rows planned", f"power, of {POWER:.0%}"):
        table.add_column(name, justify="right")
    for each in results:
        table.add_row(
            each["kind"],
            f"{each['rejected_without_difference']:.1%}",
            f"{each['covered_without_difference']:.1%}",
            f"{each['covered_with_difference']:.1%}",
            f"{each['rows_planned']:,}",
            f"{each['power_found']:.1%}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
