from __future__ import annotations

import difflib

import pytest

from pybatch.engine.arguments import expect_known, nearest


def test_the_nearest_name_is_found() -> None:
    assert nearest("temprature", ["temperature", "top_p"]) == "temperature"
    assert nearest("x", ["temperature", "top_p"]) is None
    with pytest.raises(TypeError, match="args: unknown argument 'top_q'; did you mean 'top_p'"):
        expect_known("args", ["top_q"], ["temperature", "top_p"])


def test_a_name_of_megabytes_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def compared(*arguments: object, **options: object) -> list[str]:
        raise AssertionError("difflib takes a microsecond for each of its characters")

    monkeypatch.setattr(difflib, "get_close_matches", compared)
    with pytest.raises(TypeError) as caught:
        expect_known("args", ["x" * 1_000_000], ["temperature", "top_p"])
    assert len(str(caught.value)) < 200
