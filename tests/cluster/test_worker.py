from __future__ import annotations

from pathlib import Path

import pytest

import pybatch
from pybatch.api.inputs import Encoded
from pybatch.api.outcomes import Answer, Failure, Outcome, outcome_of
from pybatch.cluster.worker import Request, Worker
from pybatch.engine import SamplingParams
from pybatch.jobs.fingerprint import model_fingerprint


def loaded(model: Path) -> Worker:
    worker = Worker()
    arguments = {"model": model, "max_num_seqs": 4}
    worker.load(pybatch.__version__, arguments, model_fingerprint(model), cpus=1)
    return worker


def request(index: int, max_tokens: int = 4) -> Request:
    params = SamplingParams(temperature=1.0, max_tokens=max_tokens, ignore_eos=True)
    return Request(index, Encoded(None, [5, 6, 7]), params)


def outcomes(worker: Worker, rows: list[Request], count: int) -> dict[int, Outcome]:
    finished = worker.exchange(rows, []).finished
    while len(finished) < count:
        finished += worker.exchange([], []).finished
    assert worker.exchange([], []).finished == []
    return {index: outcome_of(output) for index, output in finished}


def test_another_version_or_another_model_is_refused(tiny_model: Path) -> None:
    arguments = {"model": tiny_model}
    with pytest.raises(ValueError, match=r"expected pybatch 0\.0\.0, which the driver has, got"):
        Worker().load("0.0.0", arguments, model_fingerprint(tiny_model), cpus=1)
    with pytest.raises(ValueError, match=r"the model's files differ from those that the driver has"):
        Worker().load(pybatch.__version__, arguments, "of other weights", cpus=1)


def test_an_answer_depends_on_the_rows_number_and_not_on_the_worker_or_the_rows_beside_it(tiny_model: Path) -> None:
    alone = outcomes(loaded(tiny_model), [request(3)], 1)
    beside = outcomes(loaded(tiny_model), [request(index) for index in range(10)], 10)
    assert alone[3] == beside[3]
    assert beside[3] != beside[4]


def test_a_row_that_cannot_be_run_is_a_failure_beside_the_answers(tiny_model: Path) -> None:
    too_long = Request(1, Encoded(None, [5] * 600), SamplingParams())
    without_ids = Request(2, Encoded(error="not a prompt"), SamplingParams())
    finished = outcomes(loaded(tiny_model), [request(0), too_long, without_ids], 3)
    assert isinstance(finished[0], Answer)
    assert isinstance(finished[1], Failure)
    assert finished[2] == Failure("not a prompt")


def test_a_withdrawn_row_has_no_outcome_and_may_come_again(tiny_model: Path) -> None:
    worker = loaded(tiny_model)
    ((index, _),) = worker.exchange([request(0, max_tokens=500), request(1)], []).finished
    assert index == 1
    assert worker.exchange([], [0, 1]).finished == []
    assert outcomes(worker, [request(0)], 1).keys() == {0}


def test_reports_tell_of_each_step_and_token_once(tiny_model: Path) -> None:
    worker = loaded(tiny_model)
    reports = [worker.exchange([request(index) for index in range(4)], [])]
    while sum(len(report.finished) for report in reports) < 4:
        reports.append(worker.exchange([], []))
    assert sum(report.output_tokens for report in reports) == 16
    assert sum(step["tokens"] for report in reports for step in report.steps) == 4 * (3 + 4 - 1)
    assert all(output.metrics.ttft for report in reports for _, output in report.finished)
