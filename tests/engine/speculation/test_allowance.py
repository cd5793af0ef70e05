from __future__ import annotations

import pytest

from pybatch.engine.speculation.allowance import Allowance


def test_what_was_overdrawn_is_waited_for() -> None:
    allowance = Allowance(0.01)
    assert allowance.is_left
    allowance.spend(0.005)
    steps = 0
    while not allowance.is_left:
        allowance.earn(0.02)
        steps += 1
    assert steps == pytest.approx(25, abs=1)


def test_no_more_than_a_step_is_saved_up() -> None:
    allowance = Allowance(0.01)
    for _ in range(1000):
        allowance.earn(0.02)
    assert allowance.seconds == pytest.approx(0.02)
