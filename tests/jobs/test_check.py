from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pybatch import SamplingParams
from pybatch.api.outcomes import Failure
from pybatch.jobs.check import SHOWN, Checked, check_row, check_rows, find_repeated, rows_of_equal_hash
from pybatch.jobs.dialects.openai_batch import OpenAIBatch
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.rows import Row, Source
from pybatch.jobs.sources import open_source

JOB = SamplingParams(max_tokens=8)


def source(path: Path, *rows: dict[str, Any] | str) -> Source:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return open_source(path)


def request(custom_id: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "m", "messages": messages, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_every_bad_row_is_found_with_its_place(tmp_path: Path) -> None:
    rows = source(
        tmp_path / "rows.jsonl",
        {"prompt": "a"},
        '{"prompt": "cut',
        "",
        {"id": 1},
        {"prompt": "a", "temperature": "hot"},
        {"prompt": "a", "min_tokens": 9},
        {"prompt": "a", "max_tokens": 9, "min_tokens": 9},
    )
    checked = check_rows(rows, PlainDialect(), JOB)
    assert (checked.rows, checked.size) == (6, (tmp_path / "rows.jsonl").stat().st_size - 1)
    assert checked.bad == Counter(invalid_json_line=1, missing_required_parameter=1, invalid_value=2)
    says = ("line 2: not valid JSON", "line 4: the row has neither", "line 5: temperature: ", "line 6: min_tokens: ")
    for message, start in zip(checked.messages, says, strict=True):
        assert message.startswith(start)
    head, *lines = checked.lines()
    assert head == "4 of 6 rows are bad: 2 invalid_value, 1 invalid_json_line, 1 missing_required_parameter"
    assert lines == [f"  {message}" for message in checked.messages]


def test_good_rows_say_nothing(tmp_path: Path) -> None:
    checked = check_rows(source(tmp_path / "rows.jsonl", {"prompt": "a"}, {"prompt": "a"}), PlainDialect(), JOB)
    assert checked == Checked(rows=2, size=32, prompts=2)
    assert list(checked.lines()) == []


def test_only_the_first_messages_are_kept_and_none_is_long(tmp_path: Path) -> None:
    rows = source(tmp_path / "rows.jsonl", *({"messages": [{"role": "x" * 9000, "content": "a"}]} for _ in range(25)))
    checked = check_rows(rows, PlainDialect(), JOB)
    assert checked.bad.total() == 25
    assert len(checked.messages) == SHOWN
    assert max(map(len, checked.messages)) <= 300
    assert list(checked.lines())[-1] == "  and 5 more"


def test_an_id_that_an_earlier_row_has_fails_the_later_one(tmp_path: Path) -> None:
    asking = [request("a"), request("b"), request("a"), request("c"), request("a"), request("b", foo=1)]
    rows = source(tmp_path / "rows.jsonl", *asking)
    checked = check_rows(rows, OpenAIBatch(0), JOB)
    assert checked.bad == Counter(duplicate_custom_id=2, unknown_parameter=1)
    assert sorted(checked.messages) == [
        'line 3: custom_id "a" was used in line 1',
        'line 5: custom_id "a" was used in line 1',
        "line 6: foo: unknown parameter",
    ]
    for row, fields in zip(rows.rows(), asking, strict=True):
        failure = checked.duplicate(row, fields["custom_id"])
        assert (failure is not None) == (row.index in (2, 4))
        if failure is not None:
            assert failure == Failure('custom_id "a" was used in line 1', "duplicate_custom_id", "custom_id")
        assert checked.duplicate(row, None) is None


def test_ids_of_equal_hash_are_compared_themselves(tmp_path: Path) -> None:
    assert rows_of_equal_hash(array("q", (5, -3, 5, 7, -3)), array("q", (0, 2, 3, 4, 9))) == {0, 2, 3, 9}
    assert rows_of_equal_hash(array("q"), array("q")) == set()
    checked = Checked()
    find_repeated(checked, source(tmp_path / "rows.jsonl", request("a"), request("b")), OpenAIBatch(0), {0, 1})
    assert checked == Checked()


def test_a_stream_cannot_be_checked() -> None:
    class Stream:
        name, rereadable = "standard input", False

    with pytest.raises(ValueError, match="standard input can be read only once"):
        check_rows(Stream(), PlainDialect(), JOB)  # type: ignore[arg-type]


def test_a_row_is_checked_against_the_jobs_own_parameters() -> None:
    row = Row(0, "line 1", 1, {"prompt": "a", "min_tokens": 9})
    failure = check_row(row, PlainDialect(), JOB)
    assert failure == Failure("min_tokens: expected at most max_tokens = 8, got 9", "invalid_value", "min_tokens")
    asked = check_row(row, PlainDialect(), SamplingParams(max_tokens=9))
    assert not isinstance(asked, Failure)
    request, params = asked
    assert request.params == {"min_tokens": 9}
    assert (params.min_tokens, params.max_tokens) == (9, 9)


def test_each_bad_row_is_told_of(tmp_path: Path) -> None:
    rows = [request("a"), request("b"), {"custom_id": "c"}, request("a")]
    told: list[tuple[int, str]] = []
    check_rows(
        source(tmp_path / "rows.jsonl", *rows),
        OpenAIBatch(0),
        JOB,
        lambda row, failure: told.append((row.index, failure.code)),
    )
    assert told == [(2, "missing_required_parameter"), (3, "duplicate_custom_id")]
