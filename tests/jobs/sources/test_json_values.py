from __future__ import annotations

import datetime
import enum
import json
import math
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pybatch.jobs.sources.json_values import MAX_DEPTH, json_value

ZONE = datetime.timezone(datetime.timedelta(hours=2))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.none() | st.just(ZONE))
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers()
    | npst.arrays(npst.scalar_dtypes(), npst.array_shapes(max_dims=2, max_side=3))
    | npst.scalar_dtypes().flatmap(lambda dtype: npst.arrays(dtype, ()).map(lambda array: array[()]))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.frozensets(st.text() | st.integers(), max_size=3)
        | st.dictionaries(st.text() | st.integers() | st.dates() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_whatever_comes_json_can_write_it_and_reads_the_same(value: Any) -> None:
    plain = json_value(value)
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert json_value(plain) == plain


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, None),
        (np.float32(0.5), 0.5),
        (np.float16("nan"), None),
        (np.int8(-3), -3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["2024-01-02", "NaT"], "datetime64[D]"), ["2024-01-02", None]),
        (np.datetime64("2024-01-02T03:04:05.123456789"), "2024-01-02T03:04:05.123456789"),
        (np.datetime64("NaT"), None),
        (np.timedelta64(90, "s"), "PT90S"),
        (pd.Timestamp("2024-01-02 03:04:05", tz="Europe/Paris"), "2024-01-02T03:04:05+01:00"),
        (pd.Timestamp(1), "1970-01-01T00:00:00.000000001"),
        (pd.Timedelta(1_500_000_001), "PT1.500000001S"),
        (pd.NaT, None),
        (pd.NA, None),
        (pl.Series([1, None]), [1, None]),
        (datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=ZONE), "2024-01-02T03:04:05+02:00"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.time(3, 4), "03:04:00"),
        (datetime.timedelta(days=1, seconds=2, milliseconds=-2), "PT86401.998S"),
        (datetime.timedelta(seconds=-1.5), "-PT1.5S"),
        (Decimal("1.25"), 1.25),
        (Decimal("0.1"), 0.1),
        (Decimal("0.1000000000000000000001"), "0.1000000000000000000001"),
        (Decimal("NaN"), None),
        (b"text \xc3\xa9", "text é"),
        (memoryview(b"\xff\xfe"), "//4="),
        ({1: "a", None: "b", False: "c"}, {"1": "a", "null": "b", "false": "c"}),
        ({"b", "a"}, ["a", "b"]),
        (Colour.RED, "red"),
        (Text("sub"), "sub"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_values_of_other_libraries_become_what_is_meant(value: Any, expected: Any) -> None:
    result = json_value(value)
    assert result == expected
    assert type(result) is type(expected)


def test_what_json_cannot_write_is_refused() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH):
        nested = [nested]
    json.dumps(json_value(nested))
    loop: list[Any] = []
    loop.append(loop)
    for value in ([nested], loop):
        with pytest.raises(ValueError, match="nested more than 256 levels deep"):
            json_value(value)
    with pytest.raises(ValueError, match="4,300 digits"):
        json_value(10**4300)
