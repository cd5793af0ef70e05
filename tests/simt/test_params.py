"""The ctypes mirrors of the params structs: one that has drifted from csrc is an error before any kernel runs."""

from __future__ import annotations

import ctypes

import pytest

from simt import device

FIELDS = device.GatedActivationParams._fields_


def test_the_mirrors_are_the_structs() -> None:
    device.check_params()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(FIELDS[:-1], id="a field is missing"),
        pytest.param([*FIELDS, ("more", ctypes.c_int32)], id="a field too many"),
        pytest.param([FIELDS[1], FIELDS[0], *FIELDS[2:]], id="two are swapped"),
        pytest.param([*FIELDS[:-1], ("width", ctypes.c_int32)], id="one is narrower"),
        pytest.param([*FIELDS[:-1], ("columns", ctypes.c_int64)], id="one has another name"),
    ],
)
def test_a_mirror_that_has_drifted_is_reported(fields: list[tuple[str, type]]) -> None:
    drifted = type("GatedActivationParams", (ctypes.Structure,), {"_fields_": fields})
    with pytest.raises(RuntimeError, match="does not have the params"):
        device.check_params((drifted,))
