"""What a comparison comes to, in numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from pybatch.prompts.comparison.score import Score
from pybatch.prompts.comparison.statistics import (
    Difference,
    Estimate,
    as_values,
    difference,
    estimate,
    estimate_json,
    json_number,
    power_of,
    rows_for,
    with_holm,
)
from pybatch.tune.cost import UNKNOWN, Prices, Usage


@dataclass(frozen=True, slots=True)
class Measured:
    """A variant's answers, as counted and timed.

    model: as it was given. answers, errors: of all rows and repeats. seconds: of the machine, its share by the time
    that its requests ran. latencies: of a request from its first step to its last token, with all others beside it,
    in seconds: of those that this or an earlier run has timed."""

    name: str
    prompt: str
    version: str
    model: str
    answers: int
    errors: int
    input_tokens: int
    output_tokens: int
    seconds: float
    latencies: Sequence[float] = field(default=(), repr=False)

    @property
    def usage(self) -> Usage:
        return Usage(self.seconds, self.answers, self.input_tokens, self.output_tokens)

    def latency(self, share: float) -> float:
        """A quantile, in seconds; NaN: nothing was timed."""
        return float(np.quantile(self.latencies, share)) if len(self.latencies) else math.nan


@dataclass(frozen=True, slots=True)
class Plan:
    """What a comparison is to show. effect: the least difference of mean scores that matters. power: the probability
    with which it is to be found. confidence: of the intervals; 1 - confidence is the level of the tests."""

    effect: float = 0.05
    power: float = 0.8
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.effect < math.inf:
            raise ValueError(f"effect: expected a difference of scores above 0, got {self.effect!r}")
        for name, value in (("power", self.power), ("confidence", self.confidence)):
            if not 0.5 <= value < 1:
                raise ValueError(f"{name}: expected a probability from 0.5 to below 1, got {value!r}")


AS_USUAL = Plan()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two variants by one scorer. difference: of the second less the first. power: the probability with which so many
    rows show the plan's effect; rows_needed: how many give the power that is wanted; None: not known, since no two rows
    differ."""

    scorer: str
    first: str
    second: str
    difference: Difference
    power: float | None
    rows_needed: int | None

    @property
    def rows_still_needed(self) -> int | None:
        if self.rows_needed is None:
            return None
        return max(0, self.rows_needed - self.difference.estimate.rows)

    def better(self, plan: Plan) -> str | None:
        """The variant that has been shown to score higher; None: chance explains the difference."""
        if not self.difference.p_holm <= 1 - plan.confidence + 1e-12:
            return None
        return self.second if self.difference.estimate.mean > 0 else self.first


@dataclass(frozen=True, slots=True)
class RowApart:
    """A row whose answers differ in score. scores: the first repeat's, by scorer and variant."""

    row: int
    spread: float
    fields: Mapping[str, Any]
    answers: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True)
class Comparison:
    """rows, repeats: how many were compared, and how often each was answered. estimates: by scorer and variant. places:
    by judge, how many duels it decided for the same place in both orders, and of how many. apart: the rows that differ
    most, at most MOST_APART."""

    variants: Sequence[Measured]
    scorers: Sequence[str]
    scores: Sequence[Score] = field(repr=False)
    rows: int = 0
    repeats: int = 1
    plan: Plan = AS_USUAL
    estimates: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    pairs: Sequence[Pair] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    apart: Sequence[RowApart] = field(default=(), repr=False)
    prices: Prices = UNKNOWN

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    def missing(self, scorer: str, variant: str) -> int:
        """Answers without a score."""
        return sum(each.scorer == scorer and each.variant == variant and each.score is None for each in self.scores)

    def to_json(self) -> dict[str, Any]:
        """Times in seconds, money in dollars; null: not known."""
        return {
            "rows": self.rows,
            "repeats": self.repeats,
            **asdict(self.plan),
            "variants": [self._variant_json(each) for each in self.variants],
            "pairs": [pair_json(each, self.plan) for each in self.pairs],
            "judges": {name: {"same_place": same, "duels": duels} for name, (same, duels) in self.places.items()},
            "rows_apart": [apart_json(each) for each in self.apart],
        }

    def _variant_json(self, variant: Measured) -> dict[str, Any]:
        counts = {name: value for name, value in asdict(variant).items() if name != "latencies"}
        latency = {f"latency_p{share}": json_number(variant.latency(share / 100)) for share in (50, 95)}
        scores = {
            scorer: {**estimate_json(of[variant.name]), "without_score": self.missing(scorer, variant.name)}
            for scorer, of in self.estimates.items()
        }
        return {**counts, **latency, "cost": self.prices.to_json(variant.usage), "scores": scores}


MOST_APART = 10


def compared(
    variants: Sequence[Measured],
    scorers: Sequence[str],
    scores: Sequence[Score],
    *,
    fields: Callable[[int], Mapping[str, Any]],
    answers: Callable[[int], Mapping[str, str]],
    rows: int,
    repeats: int,
    plan: Plan,
    places: Mapping[str, tuple[int, int]],
    prices: Prices,
    seed: int = 0,
) -> Comparison:
    """fields: of a row. answers: to a row, the first repeat's, by variant. seed: of the resampling."""
    names = [variant.name for variant in variants]
    of_rows: dict[str, dict[str, list[list[float]]]] = {
        scorer: {name: [[] for _ in range(rows)] for name in names} for scorer in scorers
    }
    for each in scores:
        if each.score is not None:
            of_rows[each.scorer][each.variant][each.row].append(each.score)
    values = {
        scorer: {name: as_values([mean_of(row) for row in by_row]) for name, by_row in of.items()}
        for scorer, of in of_rows.items()
    }
    pairs: list[Pair] = []
    for scorer, of in values.items():
        both = list(combinations(names, 2))
        found = with_holm([difference(of[a], of[b], confidence=plan.confidence, seed=seed) for a, b in both])
        alpha = (1 - plan.confidence) / len(both)
        pairs += [pair(scorer, a, b, each, plan, alpha) for (a, b), each in zip(both, found, strict=True)]
    return Comparison(
        variants,
        scorers,
        scores,
        rows,
        repeats,
        plan,
        {
            scorer: {name: estimate(row, confidence=plan.confidence, seed=seed) for name, row in of.items()}
            for scorer, of in values.items()
        },
        pairs,
        places,
        list(rows_apart(values, scores, fields, answers)),
        prices,
    )


def pair(scorer: str, first: str, second: str, found: Difference, plan: Plan, alpha: float) -> Pair:
    """alpha: of a single test, where there are several (Bonferroni's, since which comes first is not known yet)."""
    needed = rows_for(plan.effect, found.deviation, power=plan.power, alpha=alpha)
    power = None
    if needed is not None:
        power = power_of(plan.effect, found.deviation, found.estimate.rows, alpha=alpha)
    return Pair(scorer, first, second, found, power, needed)


def mean_of(repeats: Sequence[float]) -> float | None:
    return sum(repeats) / len(repeats) if repeats else None


def rows_apart(
    values: Mapping[str, Mapping[str, Any]],
    scores: Sequence[Score],
    fields: Callable[[int], Mapping[str, Any]],
    answers: Callable[[int], Mapping[str, str]],
) -> Iterator[RowApart]:
    """The rows with the greatest spread of scores between variants, the sum over the scorers, in the data's order where
    they are alike."""
    spreads = [np.stack(list(of.values())) for of in values.values()]
    total = sum(np.nan_to_num(np.fmax.reduce(each) - np.fmin.reduce(each)) for each in spreads)
    order = np.argsort(-np.asarray(total), kind="stable")[:MOST_APART]
    chosen = [int(row) for row in order if np.asarray(total)[row] > 0]
    found: dict[int, dict[str, dict[str, Score]]] = {row: {} for row in chosen}
    for each in scores:
        if each.row in found and each.repeat == 0:
            found[each.row].setdefault(each.scorer, {})[each.variant] = each
    for row in chosen:
        yield RowApart(row, float(np.asarray(total)[row]), fields(row), answers(row), found[row])


def pair_json(pair: Pair, plan: Plan) -> dict[str, Any]:
    found = pair.difference
    return {
        "score": pair.scorer,
        "first": pair.first,
        "second": pair.second,
        "difference": estimate_json(found.estimate),
        "deviation": json_number(found.deviation),
        "p": found.p,
        "p_holm": found.p_holm,
        "better": pair.better(plan),
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "power": pair.power,
        "rows_needed": pair.rows_needed,
        "rows_still_needed": pair.rows_still_needed,
    }


def apart_json(row: RowApart) -> dict[str, Any]:
    return {
        "row": row.row,
        "spread": row.spread,
        "data": dict(row.fields),
        "answers": dict(row.answers),
        "scores": {
            scorer: {name: {"score": each.score, "feedback": each.feedback} for name, each in of.items()}
            for scorer, of in row.scores.items()
        },
    }
