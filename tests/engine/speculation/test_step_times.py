from __future__ import annotations

import random

import pytest

from pybatch.engine.speculation.step_times import StepLine, StepTimes


def learned(fixed: float, per_token: float, tokens: list[int], noise: float, seed: int = 0) -> StepLine:
    times, draw = StepTimes(), random.Random(seed)
    for count in tokens:
        times.observe(1, count, (fixed + per_token * count) * draw.uniform(1 - noise, 1 + noise))
    line = times.line(1)
    assert line is not None
    return line


@pytest.mark.parametrize(("fixed", "per_token"), [(0.010, 0.0007), (0.05, 0.001), (0.0, 0.002), (1e-4, 0.0)])
def test_steps_of_several_sizes_tell_what_a_token_takes(fixed: float, per_token: float) -> None:
    line = learned(fixed, per_token, [1, 9, 4, 1, 1, 6, 9, 2] * 20, noise=0.1)
    for tokens in (1, 5, 9):
        assert line.seconds(tokens) == pytest.approx(fixed + per_token * tokens, rel=0.1)
    assert line.per_token == pytest.approx(per_token, abs=0.03 * (fixed + per_token))


def test_steps_of_one_size_leave_it_open() -> None:
    line = learned(0.01, 0.001, [1] * 50, noise=0.05)
    assert line.seconds(1) == pytest.approx(0.011, rel=0.1)
    assert line.least_per_token == 0


def test_a_step_that_was_interrupted_tells_little() -> None:
    line = learned(0.01, 0.001, [1, 5] * 30, noise=0.02)
    line.observe(5, 10.0)
    assert line.seconds(5) < 0.03


def test_it_follows_steps_that_grow_slower() -> None:
    line = learned(0.01, 0.001, [1, 5, 9] * 20, noise=0.02)
    for tokens in [1, 5, 9] * 40:
        line.observe(tokens, 2 * (0.01 + 0.001 * tokens))
    assert line.seconds(9) == pytest.approx(0.038, rel=0.1)


def test_steps_of_many_sequences_tell_nothing_of_those_of_few() -> None:
    times = StepTimes()
    times.observe(64, 64, 0.1)
    assert times.line(1) is None
    assert times.line(65) is not None
    assert times.line(128) is None


def test_few_tokens_are_tried_before_it_is_known_what_they_take() -> None:
    line = StepLine.through(64, 0.1)
    assert 8 <= line.most_more(64) <= 64
    for tokens in (64, 128, 64, 256) * 10:
        line.observe(tokens, 0.05 + 0.001 * tokens)
    assert line.most_more(64) > 3 * 64


def test_what_is_known_of_a_token_holds_from_the_first_step_on() -> None:
    line = StepLine.through(64, 0.039, per_token=0.00045)
    assert line.seconds(128) == pytest.approx(0.039 + 64 * 0.00045)
    assert 0.0003 < line.least_per_token < line.per_token
    assert StepLine.through(1, 0.01, per_token=0.1).per_token < 0.01


def test_the_nearest_steps_are_of_no_more_sequences_if_there_are_any() -> None:
    times = StepTimes()
    assert times.nearest(5) is None
    for sequences in (4, 32):
        times.observe(sequences, sequences, 0.001 * sequences)
    assert times.nearest(20) is times.line(4)
    assert times.nearest(64) is times.line(32)
    assert times.nearest(1) is times.line(4)
    assert times.most_sequences == 32
