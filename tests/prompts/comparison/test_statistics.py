from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybatch.prompts.comparison.statistics import (
    Difference,
    Estimate,
    as_values,
    difference,
    estimate,
    permutation_p,
    power_of,
    rows_for,
    with_holm,
)


def scores(*values: float | None) -> np.ndarray:
    return as_values(values)


def test_a_difference_counts_rows_that_both_have_scores_of() -> None:
    found = difference(scores(1, 0, 0, None, 0.5), scores(1, 1, 1, 1, 0))
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.estimate.rows == 4
    assert found.estimate.mean == pytest.approx((0 + 1 + 1 - 0.5) / 4)
    assert found.deviation == pytest.approx(np.std([0, 1, 1, -0.5], ddof=1))


def mid_p(values: list[float]) -> float:
    """By all choices of signs, one by one."""
    observed, beyond, like, count = abs(sum(values)), 0, 0, 2 ** len(values)
    for choice in range(count):
        total = abs(sum(value if choice >> i & 1 else -value for i, value in enumerate(values)))
        like += math.isclose(total, observed, abs_tol=1e-9)
        beyond += total > observed + 1e-9
    return (beyond + like / 2) / count


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9))
def test_p_is_that_of_all_choices_of_signs(values: list[float]) -> None:
    expected = mid_p(values) if any(values) else 1.0
    assert permutation_p(np.array(values)) == pytest.approx(expected)


def test_p_of_many_rows_is_near_the_normal_one() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.12, 1.0, 400)
    z = values.mean() / (values.std(ddof=0) / math.sqrt(400))
    assert permutation_p(values) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), rel=0.1)


def test_few_or_equal_values_have_no_width() -> None:
    assert math.isnan(estimate(scores()).mean)
    one = estimate(scores(0.5, None))
    assert (one.mean, one.rows) == (0.5, 1)
    assert math.isnan(one.low)
    assert estimate(scores(1, 1, 1)) == Estimate(1.0, 1.0, 1.0, 3)
    same = difference(scores(1, 0, 1), scores(1, 0, 1))
    assert (same.p, same.estimate.low, same.estimate.high) == (1.0, 0.0, 0.0)


def test_the_same_scores_have_the_same_figures() -> None:
    random = np.random.default_rng(1)
    first, second = random.random(60), random.random(60)
    assert difference(first, second) == difference(first, second)
    turned = difference(second, first)
    assert turned.estimate.mean == pytest.approx(-difference(first, second).estimate.mean)
    assert turned.p == pytest.approx(difference(first, second).p, abs=0.01)


def of_p(p: float) -> Difference:
    return Difference(Estimate(0.0, 0.0, 0.0, 9), p, p, 1.0, 0, 9, 0)


def test_holm_as_in_statsmodels() -> None:
    # statsmodels.stats.multitest.multipletests([0.01, 0.04, 0.03, 0.5], method="holm")[1]
    adjusted = [each.p_holm for each in with_holm([of_p(0.01), of_p(0.04), of_p(0.03), of_p(0.5)])]
    assert adjusted == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert [each.p_holm for each in with_holm([of_p(0.7)])] == [0.7]
    assert [each.p_holm for each in with_holm([of_p(0.9), of_p(0.8)])] == [1.0, 1.0]


def test_rows_for_an_effect_as_the_textbook_has_them() -> None:
    # Guenther's formula gives 34 for d = 0.5 at 80% and 5%; G*Power's exact answer is 34.
    assert rows_for(0.5, 1.0) == 34
    assert rows_for(0.2, 1.0) == 199  # G*Power: 199
    assert rows_for(0.2, 1.0, power=0.9) == 265  # G*Power: 265
    assert rows_for(0.1, 0.0) is None
    assert rows_for(0.1, math.nan) is None


@given(st.floats(0.05, 1), st.floats(0.2, 1), st.floats(0.5, 0.99))
def test_power_is_rows_turned_round(effect: float, deviation: float, power: float) -> None:
    rows = rows_for(effect, deviation, power=power)
    assert rows is not None
    assert power_of(effect, deviation, rows) >= power - 1e-9
    assert power_of(effect, deviation, rows - 1) < power


def right_or_wrong(random: np.random.Generator, rows: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two variants that agree on about half of the rows."""
    shared = random.random(rows) < 0.5
    first, other = random.random(rows), random.random(rows)
    return (first < 0.55).astype(float), (np.where(shared, first, other) < 0.55 + effect).astype(float)


def test_error_rates_are_as_told() -> None:
    """400 comparisons of 80 rows; bench/compare_statistics.py has 1,000 of several kinds. Chance itself is 2.2 points
    wide here (two standard errors)."""
    random = np.random.default_rng(2)
    found = [difference(*right_or_wrong(random, 80, 0.0)) for _ in range(400)]
    assert 0.025 <= np.mean([each.p <= 0.05 for each in found]) <= 0.075
    assert 0.925 <= np.mean([each.estimate.low <= 0 <= each.estimate.high for each in found]) <= 0.975
