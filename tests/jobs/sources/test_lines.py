from __future__ import annotations

import pytest

from pybatch.jobs.sources.lines import read_lines


def test_rows_are_numbered_without_blank_lines_and_keep_their_fields() -> None:
    rows = list(read_lines([b'\xef\xbb\xbf{"prompt": "a", "id": 1.0}\r\n', b"\n", b'{"prompt": "\xc3\xa9"}'], "jsonl"))
    assert [(row.index, row.fields, row.error) for row in rows] == [
        (0, {"prompt": "a", "id": 1.0}, None),
        (1, {"prompt": "é"}, None),
    ]
    assert [row.place for row in rows] == ["line 1", "line 3"]
    assert rows[1].size == len(b'{"prompt": "\xc3\xa9"}')


def test_text_lines_are_prompts() -> None:
    rows = list(read_lines([b" one \n", b"  \n", b'{"two"}\r\n'], "text"))
    assert [row.fields for row in rows] == [{"prompt": " one "}, {"prompt": '{"two"}'}]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"prompt": "cut', "not valid JSON"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b'"text"', "expected a JSON object, got str"),
        (b'{"x": NaN}', "NaN is no JSON number"),
        (b'{"x": 1e999}', "out of range"),
        (b'{"x": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_that_rows_error_alone(line: bytes, says: str) -> None:
    good = b'{"prompt": "x"}\n'
    before, bad, after = read_lines([good, line + b"\n", good], "jsonl")
    assert before.error is None
    assert after.error is None
    assert bad.error is not None
    assert says in bad.error
    assert bad.place == "line 2"
    assert bad.fields == {"line": line.decode(errors="replace")}
