"""Rows of jobs beside interactive requests, on one engine."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pybatch import LLM, AsyncLLM, RequestOutput, SamplingParams
from pybatch.api.inputs import Encoded
from pybatch.api.shared_session import InFlight, SharedSession
from pybatch.bulk import answer
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.jobs.checked_rows import RowOptions, check_input
from pybatch.jobs.preparation import prepare
from pybatch.jobs.report.files import ReportFiles
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.row_runner import RowSession
from pybatch.jobs.sources import open_source

ENGINE = {"predict_lengths": False, "num_kv_blocks": 256, "max_num_seqs": 8, "threads": 1}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=450, ignore_eos=True)


@pytest.fixture
def llm(tiny_model: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(tiny_model, **ENGINE)
    yield llm
    llm.close()
    assert not llm.engine.has_unfinished()
    llm.engine.check_integrity()


def finished(session: SharedSession, outputs: list[RequestOutput], count: int) -> list[RequestOutput]:
    """Steps until so many have been received."""
    deadline = time.monotonic() + 30
    while len(outputs) < count and time.monotonic() < deadline:
        session.step()
    assert len(outputs) == count
    return outputs


def ids_of(output: RequestOutput) -> list[list[int]]:
    return [sample.token_ids for sample in output.outputs]


def test_jobs_on_a_shared_engine_give_what_they_give_alone(llm: AsyncLLM, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"id": f"row {i}", "prompt": f"a prompt {i} " * (1 + i % 9)} for i in range(60)]
    rows[7]["prompt"] = "too long " * 400
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling: dict[str, Any] = {"temperature": 0.8, "max_tokens": 9}

    def run(session: RowSession, output: Path) -> list[dict[str, Any]]:
        source = open_source(str(data), None)
        checked = check_input(source, RowOptions(), sampling=sampling, created=0)
        with prepare(checked, Destination(str(output)), model=tiny_model, engine={}, sampling=sampling) as prepared:
            answer(prepared, session, sampling, "skip", None, ReportFiles(), show_progress=False, trace=None)
        return [json.loads(line) for line in output.read_text().splitlines()]

    expected = run(LLM(tiny_model, **ENGINE).session, tmp_path / "alone.jsonl")
    found: list[list[dict[str, Any]]] = []

    def on_own_thread(place: int) -> None:
        with SharedSession(llm.thread) as session:
            found.append(run(session, tmp_path / f"shared{place}.jsonl"))

    async def main() -> None:
        jobs = [threading.Thread(target=on_own_thread, args=(place,)) for place in range(2)]
        for job in jobs:
            job.start()
        while any(job.is_alive() for job in jobs):
            *_, last = [output async for output in llm.generate("interactive", GREEDY)]
            assert last.error is None
        for job in jobs:
            job.join()

    asyncio.run(asyncio.wait_for(main(), 60))
    assert found == [expected, expected]
    assert sum("error" in row for row in expected) == 1


def test_outputs_are_received_by_a_step_on_its_callers_thread(llm: AsyncLLM) -> None:
    session = SharedSession(llm.thread)
    outputs: list[RequestOutput] = []
    threads: set[threading.Thread] = set()

    def receive(output: RequestOutput) -> None:
        threads.add(threading.current_thread())
        outputs.append(output)

    prompts = session.encode([(f"prompt {i}", GREEDY) for i in range(40)])
    ids = [session.add(prompt, GREEDY, receive, index=i) for i, prompt in enumerate(prompts)]
    ids.append(session.add(Encoded(error="no prompt", error_code="invalid_request"), GREEDY, receive, index=40))
    assert (session.in_flight, outputs) == (41, [])
    finished(session, outputs, 41)
    assert session.in_flight == 0
    assert threads == {threading.current_thread()}
    assert sorted(output.request_id for output in outputs) == sorted(ids)
    (refused,) = [output for output in outputs if output.error]
    assert (refused.request_id, refused.error) == (ids[40], "no prompt")
    begin = time.monotonic()
    session.step()  # with nothing to come
    assert 0.04 < time.monotonic() - begin < 1
    session.close()


def test_the_index_seeds_the_draws(llm: AsyncLLM) -> None:
    drawn = SamplingParams(temperature=1, max_tokens=8, ignore_eos=True)
    with SharedSession(llm.thread) as session:
        outputs: list[RequestOutput] = []
        for index in (1, 2, 1):
            session.add(session.encode([("a prompt", drawn)])[0], drawn, outputs.append, index=index)
            finished(session, outputs, len(outputs) + 1)
    first, second, third = map(ids_of, outputs)
    assert first == third != second


def test_rows_take_no_places_of_interactive_prompts(llm: AsyncLLM) -> None:
    """Rows come beside the tokenising queue, whose places interactive requests fill."""
    places = 2 * llm.engine.config.max_num_seqs

    async def main() -> None:
        with SharedSession(llm.thread) as session:
            outputs: list[RequestOutput] = []
            prompts = session.encode([(f"row {i}", LONG) for i in range(3 * places)])
            for i, prompt in enumerate(prompts):
                session.add(prompt, LONG, outputs.append, index=i)
            while llm.engine.num_unfinished() < 3 * places:
                await asyncio.sleep(0.001)
            streams = [llm.generate(f"interactive {i}", LONG) for i in range(places)]
            waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
            async with asyncio.timeout(20):
                while llm.engine.num_unfinished() + len(outputs) < 4 * places:
                    session.step()
                    await asyncio.sleep(0)
            for each in waiting:
                each.cancel()

    asyncio.run(main())


def test_an_interactive_request_takes_the_place_of_a_row(llm: AsyncLLM) -> None:
    outputs: list[RequestOutput] = []

    async def ask() -> RequestOutput:
        return [output async for output in llm.generate("interactive", GREEDY)][-1]

    async def main() -> tuple[RequestOutput, bool]:
        while llm.engine.metrics.steps < 5:
            await asyncio.sleep(0.001)
        return await ask(), session._inbox.empty()

    with SharedSession(llm.thread) as session:
        prompts = session.encode([(f"row {i}", LONG) for i in range(16)])  # twice as many as there are places
        for i, prompt in enumerate(prompts):
            session.add(prompt, LONG, outputs.append, index=i)
        answer, before_every_row = asyncio.run(asyncio.wait_for(main(), 60))
        assert before_every_row
        assert llm.engine.metrics.preemptions == 1
        finished(session, outputs, 16)
    assert answer.outputs == asyncio.run(ask()).outputs
    assert [output.error for output in outputs] == [None] * 16


def test_an_abort_and_a_close_leave_nothing_behind(llm: AsyncLLM) -> None:
    outputs: list[RequestOutput] = []
    session = SharedSession(llm.thread)
    prompts = session.encode([(f"prompt {i}", LONG) for i in range(30)])
    ids = [session.add(prompt, LONG, outputs.append, index=i) for i, prompt in enumerate(prompts)]
    for each in ids[:10]:
        session.abort(each)
    session.abort("unknown")
    assert session.in_flight == 20
    session.step()
    session.close()
    deadline = time.monotonic() + 10
    while llm.engine.has_unfinished() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not llm.engine.has_unfinished()
    assert not llm.thread._open
    assert {output.request_id for output in outputs} <= set(ids[10:])


def test_a_failed_step_of_the_engine_is_raised_by_the_next_one_here(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SharedSession(llm.thread) as session:
        outputs: list[RequestOutput] = []
        (prompt,) = session.encode([("a prompt", GREEDY)])
        session.add(prompt, GREEDY, outputs.append, index=0)
        finished(session, outputs, 1)
        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "run", Mock(side_effect=MemoryError("no memory")))
            for index in range(3):
                session.add(prompt, GREEDY, outputs.append, index=index)
            with pytest.raises(RuntimeError, match=r"engine has failed .* MemoryError\('no memory'\)") as at:
                finished(session, outputs, 2)
        assert isinstance(at.value.__cause__, MemoryError)
        assert len(outputs) == 1
    with SharedSession(llm.thread) as session:
        session.add(prompt, GREEDY, outputs.append, index=0)
        first, second = map(ids_of, finished(session, outputs, 2))
        assert first == second


def test_an_engine_that_is_closed_is_told(tiny_model: Path) -> None:
    llm = AsyncLLM(tiny_model, **ENGINE)
    session = SharedSession(llm.thread)
    (prompt,) = session.encode([("a prompt", LONG)])
    session.add(prompt, LONG, print, index=0)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.step()
    with pytest.raises(RuntimeError, match="closed"):
        session.add(prompt, LONG, print, index=1)
    session.close()


def test_sessions_share_a_bound(llm: AsyncLLM) -> None:
    assert SharedSession(llm.thread).capacity == 2 * llm.engine.config.max_num_seqs
    bound = InFlight(10)
    (prompt,) = llm.session.encode([("a prompt", LONG)])

    def fill(session: SharedSession) -> int:
        while session.in_flight < session.capacity:
            session.add(prompt, LONG, print, index=session.in_flight)
        return session.in_flight

    with SharedSession(llm.thread, bound) as first:
        assert fill(first) == 10
        with SharedSession(llm.thread, bound) as second:
            assert second.capacity == 5
            assert first.capacity <= 10
            assert fill(second) == 5
            for request_id in list(first._requests)[:5]:
                first.abort(request_id)  # or its end
                assert fill(first) == first.in_flight < 10, "it takes no more than it had while the other has its share"
            assert (first.in_flight, second.in_flight, bound.requests) == (5, 5, 10)
            for request_id in list(second._requests)[:3]:
                second.abort(request_id)
            assert fill(first) == 8, "what the other leaves"
        assert fill(first) == 10
        bound.limit = 2
        assert first.capacity <= 10
    assert bound.requests == 0
    with SharedSession(llm.thread, InFlight(1)) as only, SharedSession(llm.thread, only._bound) as other:
        assert (only.capacity, other.capacity) == (1, 1)


def test_its_rows_are_background_work_of_whom_it_says(llm: AsyncLLM) -> None:
    asked = Standing(priority=-5, user="ann", tpot_target=1.0)
    for user in (None, "batch"):
        with SharedSession(llm.thread, user=user) as session:
            (prompt,) = session.encode([("a", GREEDY)])
            submission, _ = session._requests[session.add(prompt, GREEDY, lambda output: None, index=0, standing=asked)]
            assert submission.standing == replace(asked, priority=BACKGROUND, user=user or "ann")
