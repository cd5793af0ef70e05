"""Paired statistics: the same rows, answered in two ways and scored.

A row is the unit: its difference is the second variant's score less the first one's. Needs scipy (extra `stats`), which
takes half a second to import and so is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[np.float64]

RESAMPLES = 9999  # of the bootstrap and of the permutation test
NUMBERS_AT_ONCE = 1 << 22  # of a resample, in memory
TIE = 1e-9  # scores this near are the same


class StatisticsMissingError(ValueError):
    """scipy is not installed."""


def expect_scipy() -> None:
    """Raises StatisticsMissingError, before anything has run that needs it."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError:
        raise StatisticsMissingError("compare: needs the package scipy: pip install 'pybatch[stats]'") from None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of `rows` values and its interval. NaN: there are too few values."""

    mean: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What separates two variants, by the rows that both have a score of.

    estimate: of the mean difference. p: of so large a difference by chance, if there is none. p_holm: the same among
    all comparisons. deviation: of a row's difference, the standard one. wins, ties, losses: rows, of the second.
    """

    estimate: Estimate
    p: float
    p_holm: float
    deviation: float
    wins: int
    ties: int
    losses: int


def difference(first: Values, second: Values, *, confidence: float = 0.95, seed: int = 0) -> Difference:
    """first, second: scores of the same rows; a row that has NaN in one counts in neither."""
    both = ~(np.isnan(first) | np.isnan(second))
    values = second[both] - first[both]
    values[np.abs(values) <= TIE] = 0.0
    p = permutation_p(values, seed=seed)
    return Difference(
        estimate=estimate(values, confidence=confidence, seed=seed),
        p=p,
        p_holm=p,
        deviation=float(values.std(ddof=1)) if len(values) > 1 else math.nan,
        wins=int((values > 0).sum()),
        ties=int((values == 0).sum()),
        losses=int((values < 0).sum()),
    )


def estimate(values: Values, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean and its bootstrap interval, by percentiles.

    These are too narrow for few rows, by the factor that Student's t is wider than the normal distribution and a sample
    narrower than what it is drawn from: the level is raised for it (Hesterberg, What Teachers Should Know about the
    Bootstrap, 2015, "expanded percentile interval"). NaN where there is one value or none.
    """
    values = values[~np.isnan(values)]
    count = len(values)
    mean = float(values.mean()) if count else math.nan
    if count < 2:
        return Estimate(mean, math.nan, math.nan, count)
    if np.ptp(values) <= TIE:
        return Estimate(mean, mean, mean, count)
    from scipy import stats

    t = stats.t.ppf((1 + confidence) / 2, count - 1) * math.sqrt(count / (count - 1))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=2 * stats.norm.cdf(t) - 1,
        method="percentile",
        n_resamples=RESAMPLES,
        batch=at_once(count),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), count)


def permutation_p(values: Values, *, seed: int = 0) -> float:
    """The p value of a mean difference by chance: if the variants are alike, each row's difference may as well have the
    other sign. Two-sided; exact where all signs can be tried, else by RESAMPLES random choices.

    Scores are few and ties of the statistic many, for which the plain p is too great: of 200 rows that are right or
    wrong 3% are rejected at 5%. So it is the mid-p: results like the one observed count half (Lancaster 1961; advised
    for paired proportions by Fagerland, Lydersen and Laake 2013).
    """
    if not values.any():
        return 1.0
    moved = values[values != 0]
    if len(moved) < 2:  # scipy's test wants two; a zero changes nothing
        moved = np.append(moved, 0.0)
    from scipy import stats

    test = stats.permutation_test(
        (moved,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=at_once(len(moved)),
        rng=np.random.default_rng(seed),
    )
    null, observed = np.abs(test.null_distribution), abs(float(test.statistic))
    like = np.isclose(null, observed, rtol=1e-9, atol=1e-12)
    beyond = int(((null > observed) & ~like).sum())
    if len(moved) <= math.log2(RESAMPLES):  # all were tried
        return float((beyond + like.sum() / 2) / len(null))
    return float((beyond + (like.sum() + 1) / 2) / (len(null) + 1))  # the observed one is a choice too


def at_once(count: int) -> int:
    return max(1, NUMBERS_AT_ONCE // count)


def with_holm(differences: Sequence[Difference]) -> list[Difference]:
    """The p values among several, so that the chance of one false alarm in all of them stays what it is for one (Holm,
    A Simple Sequentially Rejective Multiple Test Procedure, 1979)."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p)
    adjusted = list(differences)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * differences[index].p))
        adjusted[index] = replace(differences[index], p_holm=highest)
    return adjusted


def rows_for(effect: float, deviation: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """How many rows show a mean difference of `effect` with this probability, by a two-sided test at `alpha`, where a
    row's difference has this standard deviation. None where that is not known: no two rows differ.

    n = ((z_alpha + z_power) deviation / effect)^2 + z_alpha^2 / 2, of which the last term is for the deviation's being
    estimated (Guenther, Sample Size Formulas for Normal Theory T Tests, 1981).
    """
    if not deviation > 0:
        return None
    from scipy import stats

    at_alpha, at_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    return math.ceil(float(((at_alpha + at_power) * deviation / effect) ** 2 + at_alpha**2 / 2))


def power_of(effect: float, deviation: float, rows: int, *, alpha: float = 0.05) -> float:
    """The probability that so many rows show a mean difference of `effect`: rows_for, turned round."""
    from scipy import stats

    at_alpha = stats.norm.ppf(1 - alpha / 2)
    effective = max(0.0, rows - at_alpha**2 / 2)
    return float(stats.norm.cdf(effect / deviation * math.sqrt(effective) - at_alpha))


def as_values(scores: Sequence[float | None]) -> Values:
    """None: no score."""
    return np.array([math.nan if score is None else score for score in scores], np.float64)


def json_number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def estimate_json(value: Estimate) -> dict[str, Any]:
    return {
        "mean": json_number(value.mean),
        "low": json_number(value.low),
        "high": json_number(value.high),
        "rows": value.rows,
    }
