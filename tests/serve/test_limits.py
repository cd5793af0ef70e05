from __future__ import annotations

import pytest

from pybatch.serve.limits import Bucket, Limits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_holds_a_minute_s_amount_and_fills_evenly() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert (bucket.remaining, bucket.wait, bucket.reset) == (60, 0, 0)
    bucket.charge(60)
    assert (bucket.remaining, bucket.wait, bucket.reset) == (0, 1, 60)
    clock.now += 0.5
    assert (bucket.remaining, bucket.wait) == (0, 0.5)
    clock.now += 0.5
    assert (bucket.remaining, bucket.wait) == (1, 0)
    clock.now += 1000
    assert (bucket.remaining, bucket.reset) == (60, 0)


def test_what_is_overdrawn_fills_first() -> None:
    clock = Clock()
    bucket = Bucket(600, clock)
    bucket.charge(1200)
    assert (bucket.remaining, bucket.wait, bucket.reset) == (0, 60.1, 120)
    clock.now += 60.1
    assert bucket.wait == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5"])
def test_limits_are_integers_of_at_least_1(value: object) -> None:
    with pytest.raises(ValueError, match="tokens_per_minute: expected an integer of at least 1"):
        Limits(tokens_per_minute=value)  # type: ignore[arg-type]
