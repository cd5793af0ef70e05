from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from pybatch.jobs.results.tables.kinds import Kind, ListKind, ObjectKind, column_kinds, fitted


def kind_of(*values: Any) -> Kind:
    return column_kinds([{"x": value} for value in values])["x"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, True], "bool"),
        ([1, None, 2**53], "int"),
        ([1, 2**53 + 1], "long"),
        ([1, 2**63], "json"),
        ([1, 0.5], "float"),
        ([0.5, 2**53 + 1, 1], "json"),
        ([None, None], "text"),
        (["a", 1], "json"),
        ([True, 1], "json"),
        ([[], [None, 1], [0.5]], ListKind("float")),
        ([[1], ["a"]], ListKind("json")),
        ([[1], {"a": 1}], "json"),
        ([[1], 1], "json"),
        ([{"a": 1}, {"b": [{}]}], ObjectKind({"a": "int", "b": ListKind("json")})),
        ([{}], "json"),
        ([{"\ud800": 1}], "json"),
        ([{str(n): n} for n in range(257)], "json"),
    ],
)
def test_a_column_gets_the_narrowest_kind_that_holds_its_values_in_any_order(values: list[Any], kind: Kind) -> None:
    for order in itertools.islice(itertools.permutations(values), 24):
        assert kind_of(*order) == kind


def test_deep_nesting_ends_in_text_and_text_is_jsons() -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    kind = kind_of(deep)
    inner = fitted(deep, kind)
    for _ in range(16):
        kind, (inner,) = kind.item, inner  # type: ignore[union-attr]
    assert kind == "json"
    assert json.loads(inner) == json.loads("[" * 184 + '"x"' + "]" * 184)
    assert fitted("\ud800", "text") == "\\ud800"
    assert fitted("\ud800", "json") == '"\\ud800"'


def test_columns_come_in_the_order_in_which_they_appear_after_those_that_are_always_there() -> None:
    kinds = column_kinds([{"b": 1}, {"a": "x", "b": 2, "y": None}], {"z": ListKind("int"), "a": "int"})
    assert list(kinds.items()) == [("z", ListKind("int")), ("a", "text"), ("b", "int"), ("y", "text")]
