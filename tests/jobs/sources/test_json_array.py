from __future__ import annotations

import io
import json

import pytest

from pybatch.jobs.rows import Row
from pybatch.jobs.sources import json_array
from pybatch.jobs.sources.json_array import ArrayError, begins_array, read_json_array

ROWS = [{"prompt": f"é {n} ]}},[", "n": n, "nested": [{"a": '"\\'}] * (n % 4)} for n in range(50)]


def read(data: bytes) -> list[Row]:
    return list(read_json_array(io.BufferedReader(io.BytesIO(data)), "row ", 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
@pytest.mark.parametrize("indent", [None, 2])
def test_elements_are_rows_however_the_file_is_read(
    piece: int, indent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_array, "PIECE", piece)
    data = b"\xef\xbb\xbf \n" + json.dumps(ROWS, ensure_ascii=False, indent=indent).encode() + b"\n"
    rows = read(data)
    assert [row.fields for row in rows] == ROWS
    assert [(row.index, row.place, row.error) for row in rows[:2]] == [(3, "row 0", None), (4, "row 1", None)]
    assert read(b" [ ] ") == []


def test_an_element_that_is_no_row_is_its_own_error() -> None:
    deep = b"[" * 300 + b"]" * 300
    rows = read(b'[{"prompt": "a"}, 12, [1, 2], {"a": NaN}, {"a": "\xff"}, {"a": ' + deep + b'}, "x", {"prompt": "b"}]')
    assert [row.error and row.error[:34] for row in rows] == [
        None,
        "expected a JSON object, got int",
        "expected a JSON object, got list",
        "not valid JSON: NaN is no JSON num",
        "not UTF-8: invalid start byte",
        "not valid JSON: nested more than 2",
        "expected a JSON object, got str",
        None,
    ]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'[{"a": 1}', "row 0: not valid JSON: the array does not end"),
        (b'[{"a": 1} {"a": 2}]', "expected a comma or ] after row 0"),
        (b'[{"a": 1}, {"a": 2', "row 1: not valid JSON"),
        (b'[{"a": 1},]', "row 1: not valid JSON: Expecting value"),
        (b"[12", "row 0: not valid JSON: the array does not end"),
        (b"[] []", "expected nothing behind the array"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_array_is_one_error(data: bytes, says: str) -> None:
    with pytest.raises(ArrayError, match=says.replace("[", r"\[")):
        read(data)


def test_an_element_that_is_too_long_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(json_array, "PIECE", 100)
    file = io.BufferedReader(io.BytesIO(b'["' + b"x" * 100_000))  # type: ignore[arg-type]
    with pytest.raises(ArrayError, match="row 0: longer than"):
        list(read_json_array(file, "row ", 0))
    assert file.tell() < 5000


def test_what_does_not_begin_with_a_bracket_is_no_array() -> None:
    for data, expected in ((b"\xef\xbb\xbf\r\n [1]", True), (b'{"a": [1]}', False), (b"", False)):
        assert begins_array(io.BufferedReader(io.BytesIO(data))) == expected  # type: ignore[arg-type]
