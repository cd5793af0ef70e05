from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.scheduling.forecast import Forecast
from pybatch.engine.scheduling.length_prediction import LengthPredictor
from pybatch.engine.scheduling.sequence import Request, Sequence

PERIOD = 4


def sequence_of(prompt: int, max_tokens: int, n: int = 1) -> Sequence:
    request = Request(
        "",
        None,
        [1] * prompt,
        SamplingParams(n=n, max_tokens=max_tokens),  # type: ignore[arg-type]
        max_total_tokens=prompt + max_tokens,
        stop_ids=frozenset(),
        stream=False,
        arrival_time=0.0,
    )
    return Sequence(request, 0, 0, None)


def held(running: list[Sequence], steps: int) -> int:
    """The tokens that sequences hold so many steps later, each until the end of the period in which it ends."""
    total = 0
    for each in running:
        samples = each.request.params.n
        left = each.request.max_total_tokens - len(each.tokens)
        if steps <= left - left % PERIOD + PERIOD:
            total += len(each.tokens) + samples * (PERIOD // 2 + steps)
    return total


@settings(max_examples=200, deadline=None)
@given(
    running=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=12),
    newcomer=st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 3)),
)
def test_the_peak_is_that_of_every_step_to_come(running: list[tuple[int, int]], newcomer: tuple[int, int, int]) -> None:
    """At the end of every step the pool is filled one by one, where outputs are as long as they may be."""
    forecast = Forecast(LengthPredictor(), period=PERIOD)
    sequences = [sequence_of(*each) for each in running]
    for each in sequences:
        forecast.add(each)
    last = sequence_of(*newcomer)
    peak = max([held(sequences, steps) for steps in range(0, 200)], default=0)
    assert forecast.peak == peak
    with_it = max(held([*sequences, last], steps) for steps in range(0, 200))
    if newcomer[2] == 1:
        assert forecast.peak_with(last) == with_it
    else:
        assert with_it <= forecast.peak_with(last)


def test_what_is_expected_does_not_change_as_it_comes_true() -> None:
    forecast = Forecast(LengthPredictor(), period=PERIOD)
    running = [sequence_of(10, 40), sequence_of(30, 20), sequence_of(5, 60)]
    for each in running:
        forecast.add(each)
    peak = forecast.peak
    for _ in range(19):
        forecast.step()
        for each in running:
            each.tokens.append(1)
    assert forecast.peak == peak
    forecast.remove(running[1])
    assert forecast.peak < peak


def test_one_that_outlives_what_was_expected_goes_on_for_a_while() -> None:
    lengths = LengthPredictor()
    for _ in range(8):
        lengths.ended(500, 20)
    forecast = Forecast(lengths, period=PERIOD)
    running = sequence_of(10, 500)
    forecast.add(running)
    assert 30 <= forecast.peak < 30 + 2 * PERIOD
    for _ in range(28):
        forecast.step()
        running.tokens.append(1)
    assert 10 + 2 * 24 <= forecast.peak < 10 + 2 * 28 + 2 * PERIOD


def test_sums_stay_right_as_sequences_come_and_go() -> None:
    draw = random.Random(0)
    forecast = Forecast(LengthPredictor(), period=PERIOD)
    running: list[Sequence] = []
    for _ in range(500):
        forecast.step()
        for each in running:
            each.tokens.append(1)
        for each in [each for each in running if each.num_output == each.request.params.max_tokens]:
            running.remove(each)
            forecast.remove(each)
        if draw.random() < 0.3:
            running.append(sequence_of(draw.randint(1, 50), draw.randint(1, 80)))
            forecast.add(running[-1])
        fresh = Forecast(LengthPredictor(), period=PERIOD)
        for each in running:
            fresh.add(each)
        # The periods of the one begin at other steps than those of the other.
        assert abs(forecast.peak - fresh.peak) <= 2 * PERIOD * len(running)
