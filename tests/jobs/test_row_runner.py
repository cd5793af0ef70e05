from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pybatch import LLM, SamplingParams
from pybatch.api.progress import BatchProgress
from pybatch.jobs import row_runner
from pybatch.jobs.check import Checked
from pybatch.jobs.checked_rows import CheckedRows, RowOptions
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.dialects.openai_batch import OpenAIBatch
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.preparation import Preparation
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.row_runner import RowRunner
from pybatch.jobs.sources import open_source
from pybatch.jobs.sources.lines import read_json_lines
from pybatch.jobs.sources.read_ahead import ReadAhead

PLAIN = PlainDialect()
PARAMS = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=128, max_num_seqs=4, threads=1)


class JobInPipe:
    """A job whose rows come through a pipe, and whose results are read from its journal."""

    def __init__(self, llm: LLM, path: Path, cache: Path | None = None, dialect: Dialect = PLAIN) -> None:
        self.llm, self.path, self.cache, self.dialect = llm, path, cache, dialect
        read, self.pipe = os.pipe()
        self.source = open_source(f"/dev/fd/{read}", "jsonl")
        os.close(read)
        self.progress = BatchProgress(llm.engine.metrics, None, None)

    def feed(self, *rows: dict[str, Any] | bytes) -> None:
        for row in rows:
            os.write(self.pipe, row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n")

    def run(self, params: SamplingParams = PARAMS, **options: Any) -> bool:
        rows = CheckedRows(self.source, self.dialect, Checked(), RowOptions())
        with Preparation(rows, Destination(str(self.path)), {}) as prepared:
            job = prepared.start(
                self.llm.get_tokenizer(), params, self.progress, arithmetic=self.llm.session.arithmetic
            )
            with prepared.answers(self.llm.session, self.cache) as answers:
                runner = RowRunner(self.llm.session, job, ReadAhead(job.pending(), "rows"), answers, **options)
                try:
                    return runner.run()
                finally:
                    job.results.publish(finished=False)

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def done(self) -> int:
        """Rows in the journal of the job while it runs: all lines but the header."""
        journal = self.path.with_name(f"{self.path.name}.journal")
        return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


@pytest.fixture
def job(llm: LLM, tmp_path: Path) -> Iterator[JobInPipe]:
    yield JobInPipe(llm, tmp_path / "out")
    assert llm.session.idle


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_of_an_open_pipe_are_answered_as_they_come(job: JobInPipe) -> None:
    seen = list[int]()

    def produce() -> None:
        for i in range(3):
            job.feed({"prompt": f"Say {i}"})
            wait_for(lambda: job.done() == i + 1)  # noqa: B023
            seen.append(i)
        os.close(job.pipe)

    producer = threading.Thread(target=produce)
    producer.start()
    assert job.run()
    producer.join()
    assert seen == [0, 1, 2]


def test_a_template_tells_the_time_of_the_job_s_first_run(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.get_tokenizer(), "chat_template", "{{ strftime_now('%S.%f') }} {{ messages[0].content }}")
    row = {"prompt": "Say 0"}
    first = JobInPipe(llm, tmp_path / "out")
    first.feed(row)
    assert not first.run(stopped=lambda: first.progress.rows_done == 1)
    os.close(first.pipe)
    second = JobInPipe(llm, tmp_path / "out")
    second.feed(row, row)
    os.close(second.pipe)
    assert second.run()
    assert [row.get("cached", False) for row in second.results()] == [False, True]  # the prompts have the same tokens


def test_a_job_stops_while_its_pipe_is_silent(job: JobInPipe) -> None:
    job.feed({"prompt": "Say 0"})
    assert not job.run(stopped=lambda: job.progress.rows_done == 1)
    assert [row["row"] for row in job.results()] == [0]
    os.close(job.pipe)


def test_a_job_stops_among_rows_that_are_bad(job: JobInPipe) -> None:
    job.feed(*({"no": "prompt"} for _ in range(500)))
    os.close(job.pipe)
    assert not job.run(stopped=lambda: job.progress.rows_done >= 5)
    assert len(job.results()) == 5


def test_a_file_that_is_slow_to_read_is_not_waited_for(job: JobInPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_runner, "START_WAIT", 0.1)
    monkeypatch.setattr(job.source, "rereadable", True)
    done_before_the_end = list[int]()

    def produce() -> None:
        for i in range(30):
            job.feed({"prompt": f"Say {i}"})
        try:
            wait_for(lambda: job.done() > 0)
            done_before_the_end.append(job.done())
        finally:
            os.close(job.pipe)

    producer = threading.Thread(target=produce)
    producer.start()
    assert job.run()
    producer.join()
    assert done_before_the_end[0] > 0
    assert len(job.results()) == 30


def test_rows_that_repeat_others_are_not_expected_to_be_work(job: JobInPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_runner, "MOST_AT_START", 100)
    monkeypatch.setattr(row_runner, "RECENT", 16)
    rows = [{"prompt": f"Say {i % 8}"} for i in range(400)]
    job.llm.reset_prefix_cache()  # other tests have had these prompts, which would then be no work
    job.feed(*rows)
    os.close(job.pipe)
    job.progress.rows, job.progress.size = 400, sum(len(json.dumps(row)) for row in rows)
    job.progress.max_output_tokens = PARAMS.max_tokens
    left = list[float]()

    def stopped() -> bool:
        if job.progress.tokens:
            left.append(job.progress.tokens_left or 0.0)
        return False

    assert job.run(stopped=stopped)
    assert left[-1] == 0
    assert max(left) < 1.5 * job.progress.tokens  # of 8 rows, not of 400, nor of 8 of each 100


def test_rows_that_are_cached_leave_none_at_work(llm: LLM, tmp_path: Path) -> None:
    for name in ("first", "second"):
        job = JobInPipe(llm, tmp_path / name, cache=tmp_path / "cache")
        job.feed(*({"prompt": f"Say {i}"} for i in range(8)))
        os.close(job.pipe)
        job.progress.know(at_work=5, repeating=0)
        assert job.run()
        job.progress.rows, job.progress.size, job.progress.max_output_tokens = 100, 8_000, PARAMS.max_tokens
        assert (job.progress.tokens_left == 0) == (name == "second")


def test_rows_that_finish_in_the_last_step_are_written(job: JobInPipe) -> None:
    job.feed(*({"prompt": f"Say {i}"} for i in range(8)))
    os.close(job.pipe)
    steps = job.llm.engine.metrics.steps
    job.run(stopped=lambda: job.llm.engine.metrics.steps >= steps + PARAMS.max_tokens)  # a signal in the last step
    assert len(job.results()) == job.progress.rows_done == 4


def test_rows_that_run_may_end_in_the_time_of_grace_and_no_others_begin(job: JobInPipe) -> None:
    job.feed(*({"prompt": f"Say {i}"} for i in range(20)))
    os.close(job.pipe)
    steps = job.llm.engine.metrics.steps
    assert not job.run(stopped=lambda: job.llm.engine.metrics.steps > steps, grace=60.0)
    assert len(job.results()) == 8  # those in the engine, of which half were still waiting there


def test_what_finished_in_a_step_that_fails_is_written(job: JobInPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    job.feed(*({"prompt": f"Say {i}"} for i in range(8)))
    os.close(job.pipe)
    metrics, steps = job.llm.engine.metrics, iter(range(1, 100))
    count = metrics.step

    def fail(**figures: Any) -> None:
        count(**figures)
        if next(steps) == PARAMS.max_tokens:
            raise MemoryError("no memory for the step")

    monkeypatch.setattr(metrics, "step", fail)
    with pytest.raises(MemoryError, match="no memory for the step"):
        job.run()
    assert len(job.results()) == job.progress.rows_done == 4
    assert all("response" in row for row in job.results())


def test_a_row_draws_by_its_number_whatever_the_rows_before_it_are(job: JobInPipe, tmp_path: Path) -> None:
    params = SamplingParams(temperature=1, max_tokens=8, ignore_eos=True)
    other = JobInPipe(job.llm, tmp_path / "other")
    job.feed({"prompt": "Say 0"}, {"prompt": "Say it"})
    other.feed({"no": "prompt"}, {"prompt": "Say it"})
    for each in (job, other):
        os.close(each.pipe)
        each.run(params)
    first, second = ({row["row"]: row for row in each.results()} for each in (job, other))
    assert second[0]["error"].startswith("line 1: ")
    assert first[1]["response"] == second[1]["response"]


def test_equal_rows_run_once_and_are_marked_in_the_order_of_the_input(job: JobInPipe) -> None:
    rows = [{"prompt": f"Say {i % 3}"} for i in range(30)]
    job.feed(*rows, {"prompt": "Say 0", "seed": 1, "temperature": 1}, {"prompt": "Say 0", "seed": 1, "temperature": 1})
    job.feed({"prompt": "Say 0", "seed": 2, "temperature": 1}, {"prompt": "Say 0", "max_tokens": 3})
    job.feed({"prompt": "Say 0", "temperature": 1}, {"prompt": "Say 0", "temperature": 1})
    os.close(job.pipe)
    before = job.llm.engine.metrics.requests
    assert job.run()
    assert job.llm.engine.metrics.requests - before == 3 + 1 + 2 + 2
    results = job.results()
    assert [i for i, row in enumerate(results) if row.get("cached")] == [*range(3, 30), 31]
    assert job.progress.rows_cached == 28
    for i in range(3, 30):
        assert {**results[i], "row": i % 3} == {**results[i % 3], "cached": True}
    assert results[31]["response"] == results[30]["response"]


def test_answers_are_kept_for_later_jobs(llm: LLM, tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        job = JobInPipe(llm, tmp_path / name, tmp_path / "cache")
        job.feed({"prompt": "Say 0"}, {"prompt": "Say 1", "temperature": 1})
        os.close(job.pipe)
        before = llm.engine.metrics.requests
        assert job.run()
        written.append((llm.engine.metrics.requests - before, job.results()))
    (ran, first), (ran_again, second) = written
    assert (ran, ran_again) == (2, 0)
    assert second == [{**row, "cached": True} for row in first]


def test_few_large_rows_are_tokenised_at_once(job: JobInPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_runner, "MOST_BYTES_AT_ONCE", 1000)
    encode, batches = job.llm.session.encode, list[int]()

    def counted(requests: Any) -> Any:
        batches.append(len(requests))
        return encode(requests)

    monkeypatch.setattr(job.llm.session, "encode", counted)
    job.feed(*({"prompt": f"Say {i}", "data": "x" * 400} for i in range(9)))
    os.close(job.pipe)
    assert job.run()
    assert sum(batches) == 9
    assert max(batches) <= 3


def test_a_row_whose_equal_fails_runs_itself(job: JobInPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = job.llm.session.add, []

    def fail_first(prompt: Any, params: Any, receive: Any, **options: Any) -> str:
        calls.append(prompt)
        if len(calls) == 1:
            prompt.error = "a fault of this row alone"
        return add(prompt, params, receive, **options)

    monkeypatch.setattr(job.llm.session, "add", fail_first)
    job.feed(*({"prompt": "Say it"} for _ in range(4)))
    os.close(job.pipe)
    assert job.run()
    results = job.results()
    assert ["error" in row for row in results] == [True, False, False, False]
    assert [row.get("cached", False) for row in results] == [False, False, True, True]
    assert len(calls) == 2


def test_a_row_that_is_too_deep_to_be_written_is_an_error(job: JobInPipe) -> None:
    deep = next(depth for depth in range(2000, 0, -1) if readable(b'{"a":' * depth + b"1" + b"}" * depth))
    job.feed(b'{"prompt": "Hello", "deep": ' + b'{"a":' * (deep - 1) + b"1" + b"}" * (deep - 1) + b"}\n")
    job.feed({"prompt": "Hello"})
    os.close(job.pipe)
    job.run()
    by_row = {row["row"]: row for row in job.results()}
    assert "response" in by_row[1]
    assert "response" in by_row[0] or by_row[0]["error"].startswith("line 1: ")


def readable(line: bytes) -> bool:
    """On a thread, as the job reads."""
    rows = ReadAhead(read_json_lines(io.BufferedReader(io.BytesIO(line)), "line ", 0), "rows")
    row = rows.take(30)
    return row is not None and row.error is None


def several(number: int, prompts: list[Any], **body: Any) -> dict[str, Any]:
    """A row of several prompts."""
    body = {"model": "m", "prompt": prompts, **body}
    return {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}


def job_of(llm: LLM, path: Path, *rows: dict[str, Any], cache: Path | None = None) -> JobInPipe:
    job = JobInPipe(llm, path, cache, OpenAIBatch(0))
    job.feed(*rows)
    os.close(job.pipe)
    return job


def choices(job: JobInPipe) -> list[list[str]]:
    return [[choice["text"] for choice in row["response"]["body"]["choices"]] for row in job.results()]


def test_a_row_of_several_prompts_has_the_answers_to_each_in_their_order(llm: LLM, tmp_path: Path) -> None:
    prompts = ["Say a long thing", "b", "Say c"]
    job = job_of(llm, tmp_path / "out", several(0, prompts, n=2, temperature=1, seed=3), several(1, [[5, 6], [7]]))
    assert job.run()
    sampled = SamplingParams(n=2, temperature=1, seed=3, max_tokens=4, ignore_eos=True)
    expected = [llm.generate(prompts, sampled), llm.generate([[5, 6], [7]], PARAMS)]
    assert choices(job) == [[each.text for output in outputs for each in output.outputs] for outputs in expected]
    usage = job.results()[0]["response"]["body"]["usage"]
    assert usage["prompt_tokens"] == sum(len(output.prompt_token_ids) for output in expected[0])
    assert usage["completion_tokens"] == 3 * 2 * 4


def test_rows_may_be_beam_searches(llm: LLM, tmp_path: Path) -> None:
    job = job_of(llm, tmp_path / "out", several(0, ["Say it", "b"], n=2, best_of=3, use_beam_search=True))
    assert job.run()
    searched = SamplingParams(n=2, best_of=3, use_beam_search=True, max_tokens=4, ignore_eos=True)
    outputs = llm.generate(["Say it", "b"], searched)
    assert choices(job) == [[each.text for output in outputs for each in output.outputs]]


def test_prompts_of_a_row_draw_by_the_rows_number_and_their_own(llm: LLM, tmp_path: Path) -> None:
    params = SamplingParams(temperature=1, max_tokens=8, ignore_eos=True)
    rows = [several(i, ["Say it"] * (1 + i % 3)) for i in range(30)]
    whole, cut = job_of(llm, tmp_path / "whole", *rows), tmp_path / "cut"
    assert whole.run(params)
    texts = [text for row in choices(whole) for text in row]
    assert len(texts) == 60
    assert len(set(texts)) >= 40  # many bytes of this model are no characters, and look the same
    done = 0
    while done < 30:  # stopped again and again
        job = job_of(llm, cut, *rows)
        job.run(params, stopped=lambda job=job: job.progress.rows_done - job.progress.rows_resumed >= 7, grace=0.1)
        assert len(job.results()) > done
        done = len(job.results())
    assert cut.read_bytes() == whole.path.read_bytes()
    alone = job_of(llm, tmp_path / "alone", *({"no": "request"} for _ in range(8)), rows[8])
    assert alone.run(params)
    assert alone.results() == [whole.results()[8]]


def test_equal_prompts_run_once_wherever_they_stand_and_are_kept_for_later_jobs(llm: LLM, tmp_path: Path) -> None:
    rows = [several(0, ["a", "b", "a"]), several(1, ["b"]), several(2, ["c", "a"]), several(3, ["b", "a"])]
    ran, written, cached = [], [], []
    for name in ("first", "second"):
        job = job_of(llm, tmp_path / name, *rows, cache=tmp_path / "cache")
        before = llm.engine.metrics.requests
        assert job.run()
        ran.append(llm.engine.metrics.requests - before)
        written.append(job.results())
        cached.append(job.progress.rows_cached)
    assert ran == [3, 0]
    assert written[0] == written[1]
    assert cached == [2, 4]  # of the first job those of which no prompt was run


def test_a_row_with_a_prompt_that_cannot_be_answered_fails_as_a_whole(llm: LLM, tmp_path: Path) -> None:
    rows = [several(0, ["a", "x " * 600, "y " * 700]), several(1, ["a"]), several(2, [[5], [9999]])]
    job = job_of(llm, tmp_path / "out", *rows)
    before = llm.engine.metrics.requests
    assert job.run()
    assert llm.engine.metrics.requests - before <= 2
    assert [row["custom_id"] for row in job.results()] == ["1"]
    failed = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    messages = [row["response"]["body"]["error"]["message"] for row in failed]
    assert messages[0].startswith("line 1: prompt[1]: ")
    assert messages[1].startswith("line 3: prompt[1]: ")


def test_a_row_that_has_begun_may_end_with_all_its_prompts_in_the_time_of_grace(llm: LLM, tmp_path: Path) -> None:
    rows = [several(i, [f"Say {i} {j}" for j in range(12)]) for i in range(5)]
    job = job_of(llm, tmp_path / "out", *rows)
    steps = llm.engine.metrics.steps
    assert not job.run(stopped=lambda: llm.engine.metrics.steps > steps, grace=60.0)
    assert 0 < len(job.results()) < 5
    assert all(len(row) == 12 for row in choices(job))


def test_rows_are_the_requests_of_their_users(job: JobInPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    add, seen = job.llm.session.add, []

    def noted(*arguments: Any, **options: Any) -> str:
        seen.append((options["standing"].user, options["standing"].ttft_target))
        return add(*arguments, **options)

    monkeypatch.setattr(job.llm.session, "add", noted)
    job.feed({"prompt": "a", "user": "ann", "ttft_target": 2.5}, {"prompt": "b", "user": "bob"}, {"prompt": "c"})
    os.close(job.pipe)
    assert job.run()
    assert sorted(seen, key=str) == sorted([("ann", 2.5), ("bob", None), (None, None)], key=str)
