from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybatch.prompts.comparison.judge import Judge
from pybatch.prompts.comparison.score import Mark, Score
from pybatch.prompts.comparison.scorers.functions import Function
from pybatch.prompts.comparison.scorers.numbers import last_number
from pybatch.prompts.comparison.scorers.parse import KINDS, scorers_of


def mark(spec: Any, answer: str, **row: Any) -> Mark:
    (scorer,) = scorers_of(spec)
    assert not isinstance(scorer, Judge)
    return scorer.mark(row, answer)


@pytest.mark.parametrize(
    ("spec", "answer", "row", "score"),
    [
        ("exact:{label}", " positive\n", {"label": "positive"}, 1),
        ("exact:{label}", "Positive", {"label": "positive"}, 0),
        ("iexact:{label}", "POSITIVE", {"label": "positive"}, 1),
        ("iexact:{label}", "POSITIVE.", {"label": "positive"}, 0),
        ("exact:{count} {unit}", "3 kg", {"count": 3, "unit": "kg"}, 1),
        ("contains:thank you", "Well, thank you!", {}, 1),
        ("contains:thank you", "Thank You", {}, 0),
        ("icontains:thank you", "Thank You", {}, 1),
        ("icontains:straße", "STRASSE 9", {}, 1),
        ("regex:^(yes|no)$", "yes ", {}, 1),
        (r"regex:\d{4}", "in 1999", {}, 1),
        ("regex:^(yes|no)$", "yes, no", {}, 0),
        ("tokens:{reference}", "The cat, the CAT", {"reference": "cat the"}, 1),
        ("tokens:{reference}", "a b c", {"reference": "b c d"}, 0.5),
        ("tokens:{reference}", "", {"reference": "..."}, 1),
        ("tokens:{reference}", "x", {"reference": ""}, 0),
        ("numeric:{total}", "2 apples cost 1,234.50 dollars", {"total": 1234.5}, 1),
        ("numeric:{total}:0.5", "about 10.5", {"total": "10"}, 1),
        ("numeric:{total}:0.5", "about 10.6", {"total": 10}, 0),
        ("numeric:{total}:5%", "-104", {"total": -100}, 1),
        ("numeric:{total}:5%", "106", {"total": 100}, 0),
        ("numeric:3.14:.01", "pi is 3.1416", {}, 1),
        ("numeric:{total}", "none", {"total": 1}, 0),
    ],
)
def test_scores(spec: str, answer: str, row: dict[str, Any], score: float) -> None:
    found = mark(spec, answer, **row)
    assert found.score == score
    assert bool(found.feedback) == (score < 1)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_as_python_writes_it(value: float) -> None:
    assert last_number(f"The answer is {value!r}.") == value
    assert last_number(f"{value:,.2f}") == float(f"{value:.2f}")


@given(st.text())
def test_no_answer_makes_a_scorer_fail(answer: str) -> None:
    for spec in ("exact:a", "iexact:a", "contains:a", "icontains:a", "tokens:a b", "regex:a", "numeric:1"):
        score = mark(spec, answer).score
        assert score is not None
        assert 0 <= score <= 1


def test_a_row_without_a_number_has_no_score() -> None:
    found = mark("numeric:{total}", "3", total="unknown")
    assert found.score is None
    assert "'unknown'" in found.feedback


def test_a_schema(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}))
    spec = f"schema:{file}"
    assert mark(spec, '{"n": 3}').score == 1
    assert mark(spec, '```json\n{"n": 3}\n```').score == 1
    assert mark(spec, '{"n": "3"}') == Mark(0.0, "$.n: '3' is not of type 'integer'")
    assert mark(spec, "{}").feedback == "$: 'n' is a required property"
    assert mark(spec, "n is 3").feedback.startswith("no JSON: ")
    assert mark(spec, "[" * 100_000).score == 0
    file.write_text('{"type": "thing"}')
    with pytest.raises(ValueError, match="is no JSON schema"):
        scorers_of(spec)
    with pytest.raises(OSError, match="there"):
        scorers_of(f"schema:{tmp_path}/there.json")


def test_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scores.py").write_text(
        "def length(row, answer): return len(answer) / row['limit']\n"
        "def verdict(row, answer): return False, 'too dull'\n"
        "def nothing(row, answer): return None\n"
        "def broken(row, answer): return 1 / 0\n"
        "def endless(row, answer): return float('nan')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert mark("own_scores:length", "four", limit=8) == Mark(0.5)
    assert mark(f"{tmp_path}/own_scores.py:verdict", "x") == Mark(0.0, "too dull")
    assert mark("own_scores:nothing", "x").score is None
    assert mark("own_scores:broken", "x").feedback == "own_scores:broken: ZeroDivisionError: division by zero"
    assert mark("own_scores:endless", "x") == Mark(None, "own_scores:endless: nan is no score")
    assert mark(lambda row, answer: answer == row["label"], "x", label="x") == Mark(1.0)
    for spec, message in (
        ("own_scores:missing", "own_scores has no function 'missing'"),
        ("no_such_module:f", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("there.py:f", "there.py cannot be imported: FileNotFoundError"),
    ):
        with pytest.raises(ValueError, match=message):
            scorers_of(spec)


@pytest.mark.parametrize("spec", ["", "exact", "exact:", "unknown", ":", "judges", [], *(f"{kind}:" for kind in KINDS)])
def test_what_is_no_scorer(spec: Any) -> None:
    with pytest.raises(
        ValueError, match=r"score.*: expected judge, judge:CRITERION, MODULE:FUNCTION, or one of exact,"
    ):
        scorers_of(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("regex:(", "expected a regular expression, got '\\('"),
        ("numeric:{a}:-1", "expected a tolerance such as"),
        ("numeric:{a}:much", "expected a tolerance such as"),
        ("exact:{", "braces"),
        ("exat:{a}", "exat cannot be imported: .*; did you mean 'exact'\\?"),
    ],
)
def test_what_is_wrong_with_a_scorer(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorers_of(spec)


def test_names() -> None:
    found = scorers_of(["exact:a", "judge", "judge: Which is shorter?", Function("own", lambda row, answer: 1)])
    assert [each.name for each in found] == ["exact:a", "judge", "judge: Which is shorter?", "own"]
    with pytest.raises(ValueError, match="'exact:a' is given twice"):
        scorers_of(["exact:a", "exact:a"])


def test_a_score_passes_from_one_half_on() -> None:
    assert Score.of(Mark(0.5), "v", 3, 0, "s") == Score("v", 3, 0, "s", 0.5, True, "")
    assert Score.of(Mark(0.4, "why"), "v", 3, 0, "s").passed is False
    assert Score.of(Mark(None, "why"), "v", 3, 0, "s").passed is None
