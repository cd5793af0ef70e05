from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybatch.jobs.rows import Row
from pybatch.jobs.sources import delimited
from pybatch.jobs.sources.delimited import HeaderError, read_csv, read_tsv
from pybatch.jobs.sources.lines import TOO_LONG

CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def read(data: bytes, *, tabs: bool = False) -> list[Row]:
    file = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    return list((read_tsv if tabs else read_csv)(file, "line ", 0))


def test_the_header_names_the_fields_and_a_row_is_where_it_begins() -> None:
    rows = read(b'\xef\xbb\xbfprompt,id\r\n"a\nb, ""c""",1\r\n\r\n\xc3\xa9,\n')
    assert [(row.index, row.place, row.fields, row.error) for row in rows] == [
        (0, "line 2", {"prompt": 'a\nb, "c"', "id": "1"}, None),
        (1, "line 5", {"prompt": "é", "id": ""}, None),
    ]
    assert read(b"a\tb\n1,2\t3\n", tabs=True)[0].fields == {"a": "1,2", "b": "3"}
    assert read(b"") == read(b"a,b\n") == []


@given(st.lists(st.tuples(CELL, CELL, CELL)), st.booleans())
def test_rows_are_read_as_the_csv_module_writes_them(rows: list[tuple[str, ...]], tabs: bool) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t" if tabs else ",", quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *rows])
    read_back = read(text.getvalue().encode(), tabs=tabs)
    assert [tuple(row.fields.values()) for row in read_back] == rows
    assert all(row.error is None for row in read_back)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"1,2,3", "expected the header's 2 fields, got 3"),
        (b"1", "expected the header's 2 fields, got 1"),
        (b"\xff,1", "not UTF-8"),
        (b'"open,1', "not valid CSV"),
        (b'"a"b,1', "not valid CSV"),
        (b"a\rb,1", "not valid CSV"),
    ],
)
@pytest.mark.parametrize("after", [b'"quoted",2\n', b'plain,2\n"x\ny",3\n'])
def test_a_bad_row_is_that_rows_error_alone(bad: bytes, says: str, after: bytes) -> None:
    expected = [row.fields for row in read(b"a,b\nx,y\n" + after)]
    rows = read(b"a,b\nx,y\n" + bad + b"\n" + after)
    assert rows[1].error is not None
    assert says in rows[1].error
    assert rows[1].place == "line 3"
    assert rows[1].fields == {"line": bad.decode(errors="replace")}
    assert [row.fields for row in rows[:1] + rows[2:]] == expected
    assert [row.error for row in rows].count(None) == len(expected)
    assert [row.index for row in rows] == list(range(len(rows)))


@given(st.binary(max_size=20).filter(lambda line: b"\n" not in line and line.strip(b"\r")) | st.just(b'"'))
def test_whatever_a_line_holds_the_others_are_unchanged(line: bytes) -> None:
    rows = read(b"a,b\n1,2\n" + line + b"\n3,4\n5,6\n")
    assert [row.fields for row in rows if row.place != "line 3"] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
        {"a": "5", "b": "6"},
    ]
    assert [row.place for row in rows] == [f"line {number}" for number in (2, 3, 4, 5)]


def test_a_bad_byte_in_a_later_line_of_a_row_is_that_rows_error() -> None:
    bad, good = read(b'a,b\n"x\n\xff\n",1\ny,2\n')
    assert bad.error == "not UTF-8: invalid start byte"
    assert good.fields == {"a": "y", "b": "2"}
    assert good.place == "line 5"


def test_a_long_field_is_read_and_a_row_that_is_too_long_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read(b"a,b\n" + b"x" * 1_000_000 + b",1\n")[0].fields["a"]) == 1_000_000
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 100)
    rows = read(b"a,b\nx,1\n" + b"y" * 100 + b',1\n"open\n' + b"long,2\n" * 20 + b"z" * 200 + b",1\nz,3\n")
    assert rows[0].fields == {"a": "x", "b": "1"}
    assert rows[1].error == TOO_LONG
    assert rows[2].error == "not valid CSV: a quoted field does not end"
    assert rows[2].fields == {"line": '"open'}
    assert [row.fields for row in rows[3:23]] == [{"a": "long", "b": "2"}] * 20
    assert rows[23].error == TOO_LONG
    assert rows[24].fields == {"a": "z", "b": "3"}
    assert rows[24].place == "line 26"
    assert len(rows) == 25


@pytest.mark.parametrize("header", [b"a,b,a", b'"a', b"\xff,b"])
def test_a_header_that_names_no_fields_is_an_error(header: bytes) -> None:
    with pytest.raises(HeaderError, match="line 1, the header: "):
        read(header + b"\n1,2\n")
