from __future__ import annotations

import json

from pybatch.jobs.reader import Row, read_rows
from pybatch.jobs.writer import result_line, result_row


def test_the_rows_fields_come_first_and_are_all_kept() -> None:
    row = Row(4, 5, 1, {"id": "a", "prompt": "p", "nested": {"k": [1, None]}})
    result = result_row(row, {"response": "r", "finish_reason": "stop"})
    assert list(result) == ["id", "prompt", "nested", "row", "response", "finish_reason"]
    assert result["row"] == 4
    assert result["nested"] == {"k": [1, None]}


def test_results_can_be_the_input_of_the_next_job() -> None:
    first = result_row(Row(0, 1, 1, {"prompt": "p"}), {"response": "one"})
    second = result_row(Row(7, 8, 1, first), {"response": "two"})
    third = result_row(Row(8, 9, 1, second), {"error": "no"})
    assert second == {"prompt": "p", "input_row": 0, "input_response": "one", "row": 7, "response": "two"}
    assert third["input_input_response"] == "two"
    assert third["input_response"] == "one"
    assert third["error"] == "no"
    assert "response" not in third


def test_what_was_read_is_written_again() -> None:
    line = '{"text": "é \\ud800 \\u2028", "big": 12345678901234567890, "float": 1.0}'
    (row,) = read_rows([line.encode()], "jsonl")
    written = result_line(row, {})
    assert written.count(b"\n") == 1
    assert json.loads(written) == {**json.loads(line), "row": 0}
