from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybatch.engine.metrics import Distribution, RequestMetrics, StepCost


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200), st.floats(0, 1))
def test_quantiles_are_right_to_one_percent(values: list[float], q: float) -> None:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    exact = np.quantile(values, q, method="inverted_cdf")
    assert distribution.quantile(q) == pytest.approx(exact, rel=0.0101)
    assert distribution.mean == pytest.approx(np.mean(values))


def test_memory_stays_bounded() -> None:
    distribution = Distribution()
    for value in np.random.default_rng(0).lognormal(0, 1, 20000):
        distribution.add(value)
    assert distribution._buckets.buffer_info()[1] == Distribution()._buckets.buffer_info()[1] < 2200


def test_numbers_out_of_range_count_at_its_ends() -> None:
    distribution = Distribution()
    for value in (-1.0, 0.0, 1e-12, 1e12):
        distribution.add(value)
    assert distribution.quantile(0.75) == pytest.approx(1e-9, rel=0.02)
    assert distribution.quantile(1) == pytest.approx(1e9, rel=0.02)


def test_no_numbers_have_no_quantile() -> None:
    assert math.isnan(Distribution().quantile(0.5))


def test_times_of_a_request() -> None:
    metrics = RequestMetrics(10.0, num_prompt_tokens=4)
    assert (metrics.queue_time, metrics.ttft, metrics.tpot) == (None, None, None)
    metrics.first_scheduled_time, metrics.first_token_time, metrics.finished_time = 11.0, 13.0, 17.0
    metrics.num_output_tokens = 5
    assert (metrics.queue_time, metrics.prefill_time, metrics.decode_time) == (1.0, 2.0, 4.0)
    assert (metrics.ttft, metrics.tpot, metrics.e2e_time) == (3.0, 1.0, 7.0)


def test_a_distribution_gives_back_its_numbers() -> None:
    distribution = Distribution()
    for value in (100, 1, 5, 100):
        distribution.add(value)
    (one, five, hundred), counts = zip(*distribution.counts(), strict=True)
    assert (one, five, hundred) == pytest.approx((1, 5, 100), rel=0.01)
    assert counts == (1, 1, 2)
    assert distribution.above(2) == [(five, 1), (hundred, 2)]


def test_numbers_up_to_bounds_are_counted() -> None:
    distribution = Distribution()
    for value in range(1, 51):
        distribution.add(value, times=2)
    assert distribution.count == 100
    assert distribution.up_to([0.5, 1, 1.5, 2, 10, 49, 50, 1e6]) == [0, 2, 2, 4, 20, 98, 100, 100]


def test_what_came_after_a_copy_was_made() -> None:
    distribution = Distribution()
    distribution.add(3)
    copy = distribution.copy()
    distribution.add(7, times=3)
    assert distribution.since(distribution.copy()).count == 0
    added = distribution.since(copy)
    assert (added.count, added.total, copy.count) == (3, 21, 1)
    assert added.quantile(0) == pytest.approx(7, rel=0.01)


def test_step_cost_tells_what_a_step_costs_from_what_its_tokens_do() -> None:
    cost = StepCost()
    assert cost.line() == (0, 0)
    cost.add(64, 0.032)
    cost.add(64, 0.032)
    assert cost.line() == (0, pytest.approx(0.0005))  # steps that are alike cannot tell
    cost = StepCost()
    for tokens in (1, 64, 512, 64):
        cost.add(tokens, 0.005 + 0.001 * tokens)
    assert cost.line() == pytest.approx((0.005, 0.001))
