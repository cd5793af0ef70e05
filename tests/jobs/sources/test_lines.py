from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.jobs.rows import Row
from pybatch.jobs.sources import lines
from pybatch.jobs.sources.lines import read_json_lines, read_text_lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(data: bytes, *, text: bool = False) -> list[Row]:
    file = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return list((read_text_lines if text else read_json_lines)(file, "line ", 0))


def test_rows_are_numbered_without_blank_lines_and_keep_their_fields() -> None:
    rows = read(b'\xef\xbb\xbf{"prompt": "a", "id": 1.0}\r\n\n{"prompt": "\xc3\xa9"}')
    assert [(row.index, row.place, row.fields, row.error) for row in rows] == [
        (0, "line 1", {"prompt": "a", "id": 1.0}, None),
        (1, "line 3", {"prompt": "é"}, None),
    ]
    assert rows[1].size == len(b'{"prompt": "\xc3\xa9"}')


def test_text_lines_are_prompts() -> None:
    rows = read(b' one \n  \n{"two"}\r\n', text=True)
    assert [row.fields for row in rows] == [{"prompt": " one "}, {"prompt": '{"two"}'}]


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4)))
def test_rows_are_read_as_they_were_written(rows: list[dict[str, object]]) -> None:
    data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    assert [(row.index, row.fields, row.error) for row in read(data)] == [(*item, None) for item in enumerate(rows)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": "cut', "not valid JSON"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b'"text"', "expected a JSON object, got str"),
        (b'{"x": NaN}', "NaN is no JSON number"),
        (b'{"x": 1e999}', "out of range"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"x": "\x00"}', "not valid JSON: Invalid control character"),
        (b"\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"x":' * 300 + b"1" + b"}" * 300, "nested more than 256 levels deep"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
    ],
)
def test_a_bad_line_is_that_rows_error_alone(line: bytes, says: str) -> None:
    good = b'{"prompt": "x"}\n'
    before, bad, after = read(good + line + b"\n" + good)
    assert before.error is None
    assert (after.index, after.place, after.fields, after.error) == (2, "line 3", {"prompt": "x"}, None)
    assert bad.error is not None
    assert says in bad.error
    assert bad.place == "line 2"
    assert bad.fields == {"line": line.decode(errors="replace")}


@given(st.binary().filter(lambda line: b"\n" not in line and line.strip()))
def test_whatever_a_line_holds_the_others_are_unchanged(line: bytes) -> None:
    good = b'{"prompt": "x"}\n'
    for text in (False, True):
        before, row, after = read(good + line + b"\n" + good, text=text)
        assert before.fields == after.fields == read(good, text=text)[0].fields
        assert row.error is not None or isinstance(row.fields, dict)


def test_what_looks_odd_but_is_json_is_a_row() -> None:
    brackets = "[" * 300
    nested = b'{"x":' * 256 + b"1" + b"}" * 256
    lone = b'{"a": "first", "b": "\\u0000 \\ud800", "a": "last"}'
    rows = read(b"\n".join([lone, json.dumps({"x": brackets}).encode(), nested]))
    assert [row.error for row in rows] == [None, None, None]
    assert rows[0].fields == {"a": "last", "b": "\0 \ud800"}
    assert rows[1].fields == {"x": brackets}


@pytest.mark.parametrize("text", [True, False])
def test_a_line_that_is_too_long_is_not_kept(text: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 100)
    long = b'{"x": "' + b"y" * 93 + b'"}\n'
    good = b'{"x": "' + b"y" * 90 + b'"}\n'
    assert len(good) == 100
    rows = read(good + long + good + long[:-1], text=text)
    assert [row.error is None for row in rows] == [True, False, True, False]
    assert [row.size for row in rows] == [100, 103, 100, 102]
    assert rows[1].error == rows[3].error == lines.TOO_LONG
    assert [row.place for row in rows] == ["line 1", "line 2", "line 3", "line 4"]


def test_a_line_of_50_mb_is_no_row() -> None:
    row, after = read(b'{"prompt": "' + b"x" * 50_000_000 + b'"}\n{"prompt": "y"}\n')
    assert row.error == "longer than the 32 MiB that a row may have"
    assert len(row.fields["line"]) == 1000
    assert row.size == 50_000_015
    assert after.fields == {"prompt": "y"}
