from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pybatch
from pybatch import SamplingParams
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.progress import BatchProgress
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.jobs.checked_rows import RowOptions, check_input
from pybatch.jobs.preparation import OtherArithmeticError, OtherJobError, Preparation, prepare, signals_held
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.sources import open_source


def prepared(folder: Path, name: str, seed: int = 0, *, as_begun: bool = False) -> Preparation:
    """A job of two rows."""
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    checked = check_input(open_source(rows), RowOptions(), sampling={}, created=0)
    return Preparation(checked, Destination(str(folder / name)), {"seed": seed}, as_begun=as_begun)


def progress() -> BatchProgress:
    return BatchProgress(EngineMetrics(kv_blocks=1), None, None)


def test_a_job_that_is_closed_leaves_the_journals_of_others_alone(tmp_path: Path) -> None:
    with prepared(tmp_path, "a.jsonl") as first:
        with prepared(tmp_path, "b.jsonl"):
            pass
        assert (tmp_path / "a.jsonl.journal").exists()
        assert not (tmp_path / "b.jsonl.journal").exists()  # it was never begun
        first.start(None, SamplingParams(), progress(), arithmetic="CPU")
    assert (tmp_path / "a.jsonl.journal").exists()


def test_a_job_can_be_ended_as_it_was_begun(tmp_path: Path) -> None:
    with prepared(tmp_path, "out.jsonl") as begun:
        job = begun.start(None, SamplingParams(), progress(), arithmetic="CPU")
        job.save(next(job.pending()), Answer(3, (Sample("one", 2, "stop"),)))
    with pytest.raises(OtherJobError):
        prepared(tmp_path, "out.jsonl", seed=1)
    with prepared(tmp_path, "out.jsonl", seed=1, as_begun=True) as ended:
        job = ended.start(None, SamplingParams(), progress(), arithmetic="CPU")
        job.fail_rest(Failure("it was given up"))
        assert list(job.pending()) == []
        assert [record.failed for record in job.journal] == [False, True]
        job.results.publish(finished=True)
    assert "it was given up" in (tmp_path / "out.errors.jsonl").read_text()
    assert prepared(tmp_path, "out.jsonl").finished


def test_a_job_goes_on_with_the_arithmetic_that_it_was_begun_with(tmp_path: Path) -> None:
    def start(arithmetic: str, *, as_begun: bool = False) -> None:
        with prepared(tmp_path, "out.jsonl", as_begun=as_begun) as preparation:
            job = preparation.start(None, SamplingParams(), progress(), arithmetic=arithmetic)
            if not job.journal.done:
                job.save(next(job.pending()), Answer(3, (Sample("one", 2, "stop"),)))

    start("CPU, amx")
    with pytest.raises(OtherArithmeticError, match=r"begun with the arithmetic of CPU, amx, and CPU gives other bits"):
        start("CPU")
    start("CPU", as_begun=True)  # answers no further rows
    start("CPU, amx")


def test_a_job_goes_on_whatever_types_its_parameters_have(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')

    def begun(bias: float) -> Preparation:
        sampling = {
            **{"logit_bias": {5: bias, 66: -1}, "stop": ("x", "y"), "temperature": np.float32(0.5)},
            **{"structured_outputs": StructuredOutputsParams(regex="a+"), "kv_policy": StreamingLLM(4, 16)},
        }
        checked = check_input(open_source(rows), RowOptions(), sampling=sampling, created=0)
        to = Destination(str(tmp_path / "out.jsonl"))
        return prepare(checked, to, model=tiny_model, engine={"model": tiny_model}, sampling=sampling)

    with begun(1.5) as first:
        job = first.start(None, SamplingParams(), progress(), arithmetic="CPU")
        job.save(next(job.pending()), Answer(3, (Sample("one", 2, "stop"),)))
    with begun(1.5) as again:
        assert again.journal.done == 1
    with pytest.raises(OtherJobError) as caught:
        begun(2.5)
    assert [name for name, *_ in caught.value.differences] == ["logit_bias"]


def test_a_job_that_another_version_goes_on_with_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start() -> None:
        with prepared(tmp_path, "out.jsonl") as preparation:
            preparation.start(None, SamplingParams(), progress(), arithmetic="CPU")

    start()
    start()
    assert not caplog.messages
    monkeypatch.setattr(pybatch, "__version__", "99.0")
    start()
    assert [
        each.endswith("goes on with 99.0: its answers may have other bits from here on") for each in caplog.messages
    ] == [True]


def test_signals_wait_for_the_end_of_the_block_whichever_thread_gets_them() -> None:
    came: list[int] = []
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    for signum in before:
        signal.signal(signum, lambda signum, frame: came.append(signum))
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with signals_held():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pthread_kill(other.ident or 0, signal.SIGHUP)
            time.sleep(0.05)  # for both to be delivered
            assert came == []
        assert sorted(came) == [signal.SIGHUP, signal.SIGTERM]
    finally:
        end.set()
        for signum, handler in before.items():
            signal.signal(signum, handler)
