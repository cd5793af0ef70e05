"""A comparison on the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table

from pybatch.jobs.report.summary import duration
from pybatch.prompts.comparison.figures import Comparison, Measured, Pair
from pybatch.prompts.comparison.statistics import Estimate
from pybatch.tune.cost import dollars


def tables(comparison: Comparison) -> Iterator[Table]:
    yield variants_table(comparison)
    yield pairs_table(comparison)


def variants_table(comparison: Comparison) -> Table:
    table = Table(title=title(comparison), title_justify="left")
    table.add_column("variant")
    for name in (*comparison.scorers, *variant_columns(comparison)):
        table.add_column(name, justify="right")
    for variant in comparison.variants:
        scores = [interval(comparison.estimates[scorer][variant.name]) for scorer in comparison.scorers]
        table.add_row(variant.name, *scores, *variant_cells(comparison, variant))
    return table


def variant_columns(comparison: Comparison) -> list[str]:
    prices = comparison.prices
    costs = [] if prices.per_hour is None else ["cost"]
    return [
        "errors", "input tokens", "output tokens", "latency p50 / p95", *costs,
        *(f"by {api.name}" for api in prices.apis),
    ]  # fmt: skip


def variant_cells(comparison: Comparison, variant: Measured) -> list[str]:
    """Of the columns that variant_columns names."""
    cost = comparison.prices.cost(variant.usage)
    return [
        f"{variant.errors:,}",
        f"{variant.input_tokens:,}",
        f"{variant.output_tokens:,}",
        f"{duration(variant.latency(0.5))} / {duration(variant.latency(0.95))}",
        *([] if cost is None else [dollars(cost.dollars)]),
        *(dollars(api.dollars(variant.usage)) for api in comparison.prices.apis),
    ]


def title(comparison: Comparison) -> str:
    each = "once" if comparison.repeats == 1 else f"{comparison.repeats} times"
    return f"{comparison.rows:,} rows, answered {each} by {len(comparison.variants)} variants"


def pairs_table(comparison: Comparison) -> Table:
    table = Table(title="Differences, of the second variant less the first", title_justify="left")
    for name in ("score", "first", "second", "better"):
        table.add_column(name)
    for name in pair_columns(comparison):
        table.add_column(name, justify="right")
    for pair in comparison.pairs:
        better = pair.better(comparison.plan) or "neither shown"
        table.add_row(pair.scorer, pair.first, pair.second, better, *pair_cells(comparison, pair))
    return table


def pair_columns(comparison: Comparison) -> list[str]:
    plan = comparison.plan
    holm = ["p (Holm)"] if len(comparison.variants) > 2 else []
    return [
        f"difference [{plan.confidence:.0%}]", "p", *holm, "win / tie / loss", f"power for {plan.effect:g}",
        f"more rows for {plan.power:.0%}",
    ]  # fmt: skip


def pair_cells(comparison: Comparison, pair: Pair) -> list[str]:
    """Of the columns that pair_columns names."""
    found = pair.difference
    holm = [p_value(found.p_holm)] if len(comparison.variants) > 2 else []
    return [
        interval(found.estimate, signed=True),
        p_value(found.p),
        *holm,
        f"{found.wins:,} / {found.ties:,} / {found.losses:,}",
        "-" if pair.power is None else f"{pair.power:.0%}",
        "-" if pair.rows_still_needed is None else f"{pair.rows_still_needed:,}",
    ]


def notes(comparison: Comparison) -> Iterator[str]:
    """What the tables do not say: answers without scores, and judges that see places."""
    for scorer in comparison.scorers:
        for name in comparison.names:
            if missing := comparison.missing(scorer, name):
                reason = next(
                    each.feedback
                    for each in comparison.scores
                    if each.scorer == scorer and each.variant == name and each.score is None
                )
                yield f"{scorer}: {missing:,} answers of {name} have no score, the first one since: {reason}"
    for judge, (same, duels) in comparison.places.items():
        if duels:
            yield (
                f"{judge}: {same:,} of {duels:,} duels ({same / duels:.0%}) went to the same place in both orders"
                + ("; this judge sees the place more than the answer" if same > duels / 2 else "")
            )


def interval(value: Estimate, *, signed: bool = False) -> str:
    if math.isnan(value.mean):
        return "-"
    sign = "+" if signed else ""
    mean = f"{value.mean:{sign}.3f}"
    return mean if math.isnan(value.low) else f"{mean} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"


def p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
