from __future__ import annotations

from dataclasses import replace

import pytest

from pybatch.tune.fleet import Fleet, OneMachine, fleets, plan_fleet, simulate

ONE = OneMachine(row_seconds=0.1, batch=8, ramp=2.0)


def test_machines_share_the_rows_behind_their_start_up() -> None:
    assert simulate(Fleet(1), 1000, ONE).seconds == pytest.approx(102)
    run = simulate(Fleet(4, startup=30), 1000, ONE)
    assert run.seconds == pytest.approx(30 + 25 + 2)
    assert run.machine_seconds == pytest.approx(4 * 57)
    assert run.efficiency == pytest.approx(100 / (4 * 57))
    assert (run.failures, run.repeated) == (0, 0)
    assert simulate(Fleet(100), 3, ONE).seconds == pytest.approx(0.1 + 2)  # a row each


def test_stragglers_take_fewer_rows_and_end_last() -> None:
    run = simulate(Fleet(10, stragglers=0.2, slowdown=4), 10_000, ONE)
    full = 10_000 * 0.1 / 8.5  # eight machines, and two of a quarter each
    assert full < run.seconds < full + 4 * (2 + 8 * 0.1)
    assert run.seconds > simulate(Fleet(10), 10_000, ONE).seconds


def test_failures_cost_what_was_begun_and_a_start_up() -> None:
    rows, fleet = 10_000_000, Fleet(20, startup=60, mtbf=1)
    run = simulate(fleet, rows, ONE)
    hours = run.machine_seconds / 3600
    assert run.failures == pytest.approx(hours, rel=0.2)
    assert run.repeated == run.failures * 8
    spared = simulate(replace(fleet, mtbf=None), rows, ONE).seconds
    lost = run.failures * (60 + 4 * 0.1) / 20  # of each failure the start-up, and a batch that is half done
    assert run.seconds == pytest.approx(spared + lost, rel=0.01)
    assert run == simulate(fleet, rows, ONE)  # of one seed
    assert run != simulate(fleet, rows, ONE, seed=1)


def test_a_billion_rows_take_a_moment_to_plan() -> None:
    plans = fleets(Fleet(1000, 120, 0.05, 2, mtbf=200), 10**9, OneMachine(0.05, 256, 30))
    assert [each.fleet.machines for each in plans] == [125, 250, 500, 1000]
    assert plans[-1].typical.seconds <= plans[-1].late.seconds
    assert plans[0].typical.seconds == pytest.approx(8 * plans[-1].typical.seconds, rel=0.02)
    assert plan_fleet(Fleet(1), 10, ONE).typical.seconds == pytest.approx(3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((0, 0, None, None), "machines: expected at least 1, got 0"),
        ((1, -1, None, None), "startup: expected seconds"),
        ((1, 0, "some", None), "stragglers: expected SHARE:FACTOR, such as 0.05:2, got 'some'"),
        ((1, 0, "2:2", None), "stragglers: expected a share"),
        ((1, 0, "0.5:0.5", None), "slowdown: expected a factor"),
        ((1, 0, None, 0), "mtbf: expected hours"),
    ],
)
def test_what_no_fleet_is_is_refused(given: tuple[int, float, str | None, float | None], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Fleet.parse(*given)


def test_machines_that_only_fail_end_nothing() -> None:
    with pytest.raises(ValueError, match="mtbf: machines that fail every"):
        simulate(Fleet(2, startup=1, mtbf=1e-7), 10**12, OneMachine(10.0, 8, 0))
