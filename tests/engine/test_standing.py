from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pybatch.engine.standing import BACKGROUND, Standing


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("priority", 0.5, "an integer, got 0.5"),
        ("priority", True, "an integer, got True"),
        ("user", 3, "text or None, got 3"),
        ("ttft_target", -1, "a number of seconds, at least 0, or None, got -1"),
        ("ttft_target", math.inf, "a number of seconds, at least 0, or None, got inf"),
        ("tpot_target", -0.5, "a number of seconds, at least 0, or None, got -0.5"),
        ("ttft_target", "1", "a number of seconds, at least 0, or None, got '1'"),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}$"):
        Standing(**{name: value})


def test_numpys_numbers_are_numbers() -> None:
    assert Standing(priority=np.int64(3), ttft_target=np.float32(0.5), user="ann") == Standing(  # type: ignore[arg-type]
        priority=3, ttft_target=0.5, user="ann"
    )
    assert [Standing(priority=priority).background for priority in (-1, BACKGROUND)] == [False, True]
