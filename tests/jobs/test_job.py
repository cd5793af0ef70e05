from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pybatch import SamplingParams
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.progress import BatchProgress
from pybatch.engine.metrics import EngineMetrics
from pybatch.jobs.checked_rows import RowOptions, check_input
from pybatch.jobs.journal import JournalMismatchError
from pybatch.jobs.preparation import Preparation
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.rows import Source
from pybatch.jobs.sources import open_source

ANSWER = Answer(3, (Sample("one", 2, "stop"),))


def request(custom_id: str) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def stream(*rows: dict[str, Any]) -> Source:
    """Through a pipe."""
    read, write = os.pipe()
    source = open_source(f"/dev/fd/{read}", "jsonl")
    os.close(read)
    os.write(write, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    os.close(write)
    return source


def test_an_id_of_a_row_that_is_done_is_used(tmp_path: Path) -> None:
    rows = [request(name) for name in ("a", "b", "a", "c", "b")]
    for done, pending in ((0, [0, 1, 2, 3, 4]), (1, [1, 2, 3, 4])):
        checked = check_input(stream(*rows), RowOptions(), sampling={}, created=0)
        with Preparation(checked, Destination(str(tmp_path / "out")), {}) as prepared:
            progress = BatchProgress(EngineMetrics(kv_blocks=1), None, None)
            job = prepared.start(None, SamplingParams(), progress, arithmetic="CPU")
            assert prepared.journal.done == done
            left = list(job.pending())
            assert [row.index for row in left] == pending
            requests = {row.index: job.request(row) for row in left}
            assert {index: each.message for index, each in requests.items() if isinstance(each, Failure)} == {
                2: 'custom_id "a" was used in line 1',
                4: 'custom_id "b" was used in line 2',
            }
            if not done:
                job.save(left[0], ANSWER)


def test_no_row_of_another_stream_runs(tmp_path: Path) -> None:
    rows = [request(name) for name in "abcd"]
    to = Destination(str(tmp_path / "out"))

    def left(*given: dict[str, Any], save: bool = False) -> list[int]:
        checked = check_input(stream(*given), RowOptions(), sampling={}, created=0)
        with Preparation(checked, to, {}) as prepared:
            progress = BatchProgress(EngineMetrics(kv_blocks=1), None, None)
            job = prepared.start(None, SamplingParams(), progress, arithmetic="CPU")
            found = []
            try:
                for row in job.pending():
                    found.append(row.index)
                    if save and row.index == 2:
                        job.save(row, ANSWER)
            except JournalMismatchError as error:
                return [*found, -1] if "--fresh starts over" in str(error) else []
            return found

    assert left(*rows, save=True) == [0, 1, 2, 3]
    assert left(*rows) == [0, 1, 3]
    assert left(*rows, request("e")) == [0, 1, 3, 4]
    assert left(*rows[:2]) == [-1]
    assert left(rows[0], request("other"), request("c2")) == [-1]


def test_an_answer_with_what_json_lacks_is_its_row_s_error(tmp_path: Path) -> None:
    checked = check_input(open_source(["Hello"]), RowOptions(), sampling={}, created=0)
    with Preparation(checked, Destination(str(tmp_path / "out")), {}) as prepared:
        job = prepared.start(
            None, SamplingParams(), BatchProgress(EngineMetrics(kv_blocks=1), None, None), arithmetic="CPU"
        )
        token = {"token_id": 5, "logprob": float("nan"), "rank": 1, "decoded_token": "a"}
        job.save(next(job.pending()), Answer(3, (Sample("one", 2, "stop", logprobs=[[token]]),)))
        (record,) = job.journal
        assert record.failed
        assert "the row cannot be written: Out of range float values" in json.loads(record.result)["error"]
