from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import threading
import time
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar
from unittest.mock import Mock, patch

import pytest

from pybatch import (
    LLM,
    AsyncLLM,
    LoRARequest,
    PoolingParams,
    QueueFullError,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
)
from pybatch.api.inputs import Conversation
from pybatch.api.submission import Submission
from pybatch.engine.execution.model_runner import ModelRunner

Result = TypeVar("Result")
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=450, ignore_eos=True)
ENGINE = {"num_kv_blocks": 256, "max_num_seqs": 8, "threads": 1}


@pytest.fixture
def llm(tiny_model: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(tiny_model, **ENGINE)
    yield llm
    llm.close()
    assert not llm.engine.has_unfinished()
    llm.engine.check_integrity()


async def collect(llm: AsyncLLM, prompt: str, params: SamplingParams = GREEDY) -> list[RequestOutput]:
    return [output async for output in llm.generate(prompt, params)]


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Its result. Fails, rather than hangs, where something never comes."""
    return asyncio.run(asyncio.wait_for(main, timeout=60))


async def until_idle(llm: AsyncLLM) -> None:
    async with asyncio.timeout(10):
        while llm.engine.has_unfinished():
            await asyncio.sleep(0.01)


def test_concurrent_requests_get_what_llm_gives(llm: AsyncLLM, tiny_model: Path) -> None:
    prompts = [f"prompt {i}" for i in range(20)]

    async def main() -> list[list[RequestOutput]]:
        return await asyncio.gather(*(collect(llm, prompt) for prompt in prompts))

    streams = run(main())
    expected = LLM(tiny_model, **ENGINE).generate(prompts, GREEDY)
    for prompt, outputs, whole in zip(prompts, streams, expected, strict=True):
        assert outputs[-1].prompt == prompt
        assert outputs[-1].outputs == whole.outputs
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for earlier, later in itertools.pairwise(outputs):
            assert later.outputs[0].text.startswith(earlier.outputs[0].text)
            assert len(later.outputs[0].token_ids) > len(earlier.outputs[0].token_ids)
    assert llm.engine.metrics.peak_batch > 1


def test_a_stream_of_deltas_adds_up_however_slowly_it_is_read(llm: AsyncLLM) -> None:
    delta = SamplingParams(n=2, seed=1, max_tokens=60, ignore_eos=True, output_kind=RequestOutputKind.DELTA)

    async def main() -> tuple[RequestOutput, list[RequestOutput], list[RequestOutput]]:
        whole = (await collect(llm, "a prompt", replace(delta, output_kind=RequestOutputKind.CUMULATIVE)))[-1]
        quick, slow = await collect(llm, "a prompt", delta), []
        async for output in llm.generate("a prompt", delta):
            slow.append(output)
            await asyncio.sleep(0.05)
        return whole, quick, slow

    whole, quick, slow = run(main())
    assert 1 < len(slow) < len(quick)
    for stream in (quick, slow):
        for i, sample in enumerate(whole.outputs):
            assert "".join(output.outputs[i].text for output in stream) == sample.text
            assert [token for output in stream for token in output.outputs[i].token_ids] == sample.token_ids
    (only,) = run(collect(llm, "a prompt", replace(delta, output_kind=RequestOutputKind.FINAL_ONLY)))
    assert only.outputs == whole.outputs


def test_parameters_changed_after_the_call_change_nothing(llm: AsyncLLM) -> None:
    async def main() -> tuple[list[RequestOutput], list[RequestOutput]]:
        params = replace(GREEDY)
        task = asyncio.create_task(collect(llm, "a prompt", params))
        await asyncio.sleep(0)
        params.max_tokens = "5"  # type: ignore[assignment]
        return await task, await collect(llm, "a prompt")

    changed, expected = run(main())
    assert changed[-1].outputs == expected[-1].outputs


def test_leaving_the_loop_or_cancelling_the_task_drops_the_request(llm: AsyncLLM) -> None:
    async def main() -> None:
        stream = llm.generate("left", LONG)
        async for output in stream:
            assert not output.finished
            break
        await stream.aclose()
        await until_idle(llm)

        running = asyncio.Event()

        async def run() -> None:
            async for _ in llm.generate("cancelled", LONG):
                running.set()

        task = asyncio.create_task(run())
        beside = asyncio.create_task(collect(llm, "beside"))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await beside)[-1].outputs[0].finish_reason == "length"
        await until_idle(llm)

    run(main())


def test_request_ids_are_the_callers_or_numbers(llm: AsyncLLM) -> None:
    async def main() -> list[str]:
        named = [output.request_id async for output in llm.generate("a", GREEDY, request_id="mine")]
        return [named[-1], (await collect(llm, "b"))[-1].request_id, (await collect(llm, "c"))[-1].request_id]

    assert run(main()) == ["mine", "0", "1"]


def test_an_id_is_free_again_with_the_last_output(llm: AsyncLLM) -> None:
    """Though the generator that had it may end later."""

    async def main() -> None:
        before = llm.generate("before", GREEDY, "same")
        async for output in before:
            if output.finished:
                break
        after = llm.generate("after", GREEDY, "same")
        coming = asyncio.ensure_future(anext(after))
        await asyncio.sleep(0)
        await before.aclose()  # type: ignore[attr-defined]
        outputs = [await coming, *[output async for output in after]]
        assert outputs[-1].finished
        assert outputs[-1].error is None

    run(main())


def test_a_bad_prompt_is_one_output_with_an_error(llm: AsyncLLM) -> None:
    (output,) = run(collect(llm, "x" * 600))
    assert output.finished
    assert "max_model_len = 512" in str(output.error)


def test_chat(llm: AsyncLLM) -> None:
    async def main() -> str | None:
        stream = llm.chat([{"role": "user", "content": "Hello"}], GREEDY, add_generation_prompt=False)
        return [output async for output in stream][-1].prompt

    assert run(main()) == "<|role|>user: Hello<|end|>"


def test_a_prefix_is_pinned_while_others_run(llm: AsyncLLM) -> None:
    async def main() -> None:
        others = asyncio.create_task(every(llm.generate([7] * 20, SamplingParams(max_tokens=30, ignore_eos=True))))
        with await llm.pin_prefix([5] * 40) as pinned:
            assert (pinned.num_blocks, llm.engine.num_kv_blocks_pinned) == (3, 3)
            *_, last = await every(llm.generate([5] * 40 + [6], GREEDY))
            assert last.num_cached_tokens == 40
        with pytest.raises(ValueError, match="at least one token"):
            await llm.pin_prefix([])
        cancelled = asyncio.create_task(llm.pin_prefix([6] * 40))
        await asyncio.sleep(0)  # it begins
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await others
        assert await asyncio.wrap_future(llm.thread.call(lambda: llm.engine.num_kv_blocks_pinned)) == 0

    async def every(stream: AsyncIterator[RequestOutput]) -> list[RequestOutput]:
        return [output async for output in stream]

    run(main())


def test_what_vllms_scripts_call(llm: AsyncLLM) -> None:
    async def main() -> None:
        stream = llm.chat([{"role": "user", "content": "Hello"}], GREEDY, continue_final_message=True, tools=[])
        assert [output async for output in stream][-1].prompt == "<|role|>user: Hello"
        assert await llm.reset_prefix_cache()
        await llm.check_health()
        assert [output async for output in llm.generate("a", GREEDY, "id", lora_request=None, priority=0)]
        assert [output async for output in llm.generate("a", GREEDY, priority=3)][-1].error is None
        (refused,) = [output async for output in llm.generate("a", GREEDY, priority="high")]  # type: ignore[arg-type]
        assert refused.error == "priority: expected an integer, got 'high'"
        with pytest.raises(ValueError, match="lora_request: known in vLLM, not here"):
            await anext(llm.generate("a", PoolingParams(), lora_request=LoRARequest("x", 1, "x")))
        with pytest.raises(AttributeError, match=r"AsyncLLM.encode: known in vLLM, not here"):
            llm.encode  # type: ignore[attr-defined]  # noqa: B018
        assert llm.get_metrics()
        llm.shutdown()
        with pytest.raises(RuntimeError, match="closed"):
            await llm.check_health()

    run(main())


def test_one_engine_serves_several_event_loops(llm: AsyncLLM) -> None:
    first, second = (run(collect(llm, "Hello"))[-1] for _ in range(2))
    assert first.outputs == second.outputs


def test_close_ends_who_waits_and_refuses_who_comes(tiny_model: Path) -> None:
    async def main() -> None:
        async with AsyncLLM(tiny_model, **ENGINE) as llm:
            waiting = llm.generate("waiting", LONG)
            await anext(waiting)
        with pytest.raises(RuntimeError, match="closed"):
            [output async for output in waiting]
        with pytest.raises(RuntimeError, match="closed"):
            await collect(llm, "late")
        llm.close()

    run(main())


def test_a_failed_step_fails_its_requests_only(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "run", Mock(side_effect=MemoryError))
            for outputs in await asyncio.gather(collect(llm, "a"), collect(llm, "b")):
                assert "failed step" in str(outputs[-1].error)
        assert (await collect(llm, "c"))[-1].error is None

    run(main())


class Hostile(dict[str, str]):
    def keys(self) -> Any:
        raise KeyboardInterruptLike


class KeyboardInterruptLike(BaseException):
    """As a panic inside a tokenizer: an exception that is no Exception."""


def changed(**fields: Any) -> SamplingParams:
    params = SamplingParams(max_tokens=4)
    for name, value in fields.items():
        setattr(params, name, value)
    return params


def test_whatever_is_wrong_with_a_request_is_its_own_error(llm: AsyncLLM) -> None:
    poisons: list[tuple[Any, Any]] = [
        ("x", {"temperature": 0}),
        ("x", "greedy"),
        ("x", object()),
        ("x", changed(max_tokens="5")),
        ("x", changed(n=0)),
        (Hostile(prompt="x"), GREEDY),
        (object(), GREEDY),
        ([2**70], GREEDY),
        ([float("nan")], GREEDY),
        (Conversation(5), GREEDY),  # type: ignore[arg-type]
        (Conversation([{"role": "user", "content": "x"}], {"chat_template": "{{ 1 / 0 }}"}), GREEDY),
    ]

    async def main() -> None:
        under_way = asyncio.create_task(collect(llm, "under way", LONG))
        for prompt, params in poisons:
            async with asyncio.timeout(30):
                *_, output = [output async for output in llm.generate(prompt, params)]
            assert output.finished
            assert output.error, (prompt, params)
        assert (await under_way)[-1].error is None
        assert (await collect(llm, "later"))[-1].error is None

    run(main())


def test_prompts_are_tokenised_beside_the_engine(llm: AsyncLLM) -> None:
    """A stream goes on while many prompts arrive: they are added a few at a time between its steps."""
    arriving = 1000

    async def main() -> int:
        stream = llm.generate("stream", LONG)
        before = len((await anext(stream)).outputs[0].token_ids)
        asking = [
            asyncio.create_task(collect(llm, "words " * 60, SamplingParams(max_tokens=1))) for _ in range(arriving)
        ]
        while llm.engine.metrics.requests + llm.engine.num_unfinished() <= arriving:
            await asyncio.sleep(0)
        after = len((await anext(stream)).outputs[0].token_ids)
        await stream.aclose()  # type: ignore[attr-defined]
        for outputs in await asyncio.gather(*asking):
            assert outputs[-1].error is None
        return after - before

    assert run(main()) > 5


def test_the_engine_has_no_more_requests_than_its_policy_can_choose_from(llm: AsyncLLM) -> None:
    """What waits beyond that is not tokenised yet; a request gives its place back however it ends."""
    places = 2 * llm.engine.config.max_num_seqs
    most = 0

    async def ask(i: int) -> list[RequestOutput]:
        outputs = []
        params = LONG if i % 2 else SamplingParams(max_tokens=1)
        async for output in llm.generate([1] * 9000 if i % 7 == 3 else f"{i}", params):
            outputs.append(output)
            if i % 2:
                break
        return outputs

    async def main() -> None:
        nonlocal most
        for _ in range(2):
            asking = [asyncio.create_task(ask(i)) for i in range(4 * places)]
            for i, task in enumerate(asking):
                await asyncio.sleep(0.001)
                most = max(most, llm.engine.num_unfinished())
                if i % 3 == 0:
                    task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        async with asyncio.timeout(20):
            for outputs in await asyncio.gather(*(collect(llm, f"{i}") for i in range(2 * places))):
                assert outputs[-1].error is None
        await until_idle(llm)

    run(main())
    assert 0 < most <= places


def test_abort_by_id_ends_with_what_has_come(llm: AsyncLLM) -> None:
    async def main() -> None:
        stream = llm.generate("a", LONG, request_id="mine")
        first = await anext(stream)
        with pytest.raises(ValueError, match="'mine' is in use"):
            await anext(llm.generate("b", LONG, request_id="mine"))
        await llm.abort("mine")
        *_, last = [output async for output in stream]
        assert last.finished
        assert last.outputs[0].finish_reason == "abort"
        assert last.outputs[0].text.startswith(first.outputs[0].text)
        await until_idle(llm)

        waiting = [asyncio.create_task(collect(llm, "w " * 100, LONG)) for _ in range(50)]
        await asyncio.sleep(0)  # all are submitted, and few or none of them tokenised
        await llm.abort([str(i) for i in range(50)])
        await llm.abort("unknown")
        for outputs in await asyncio.gather(*waiting):
            assert outputs[-1].outputs[0].finish_reason == "abort"
        await until_idle(llm)

    run(main())


def test_if_the_engines_thread_ends_everyone_is_told(tiny_model: Path) -> None:
    async def main() -> None:
        llm = AsyncLLM(tiny_model, **ENGINE)
        waiting = llm.generate("waiting", LONG)
        await anext(waiting)
        llm.thread._commands.put(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match="thread has ended: ZeroDivisionError"):
            [output async for output in waiting]
        with pytest.raises(RuntimeError, match="thread has ended"):
            await collect(llm, "late")
        llm.close()
        assert not llm.engine.has_unfinished()

    run(main())


def test_a_prefix_that_is_being_pinned_when_the_engine_is_closed_is_cancelled(tiny_model: Path) -> None:
    async def main() -> None:
        llm = AsyncLLM(tiny_model, **ENGINE)
        step = llm.engine.step
        llm.engine.step = lambda: time.sleep(0.01) or []  # type: ignore[method-assign, func-returns-value]
        pinning = asyncio.create_task(llm.pin_prefix([5] * 40))
        while not llm.engine.has_unfinished():
            await asyncio.sleep(0.01)
        await asyncio.to_thread(llm.close)
        llm.engine.step = step  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await pinning

    run(main())


def test_what_was_left_when_the_engine_is_closed_is_dropped(tiny_model: Path) -> None:
    llm = AsyncLLM(tiny_model, **ENGINE)

    async def main() -> None:
        streams = [llm.generate(f"{i}", LONG) for i in range(8)]
        for stream in streams:
            await anext(stream)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        llm.close()

    run(main())
    assert not llm.engine.has_unfinished()
    llm.engine.check_integrity()


def test_a_loop_that_was_closed_leaves_nothing_running(llm: AsyncLLM) -> None:
    loop = asyncio.new_event_loop()
    stream = llm.generate("left", LONG)
    loop.run_until_complete(anext(stream))
    loop.close()
    run(until_idle(llm))
    assert run(collect(llm, "next"))[-1].error is None


def test_garbage_is_closed(tiny_model: Path) -> None:
    llm = AsyncLLM(tiny_model, **ENGINE)
    run(collect(llm, "a"))
    thread, engine = llm.thread, weakref.ref(llm.engine)
    del llm
    assert not any(each.is_alive() for each in thread._threads)
    del thread
    gc.collect()
    assert engine() is None


def test_a_forked_child_is_told_to_make_its_own(llm: AsyncLLM) -> None:
    run(collect(llm, "a"))
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            run(collect(llm, "a"))
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"made before a fork" in os.read(read, 1000)
    os.close(read)
    os.close(write)


def test_it_cannot_be_pickled(llm: AsyncLLM) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(llm)


def test_a_full_queue_refuses_at_once(tiny_model: Path) -> None:
    async def main() -> None:
        async with AsyncLLM(tiny_model, num_kv_blocks=256, threads=1, max_num_seqs=1, max_queued=1) as llm:
            running, waiting = llm.generate("running", LONG), llm.generate("waiting", LONG)
            await anext(running)
            waits = asyncio.ensure_future(anext(waiting))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="max_queued: 1 requests wait while max_num_seqs = 1 run"):
                await collect(llm, "refused")
            (await llm.pin_prefix([5] * 40)).release()
            await running.aclose()
            last = asyncio.create_task(collect(llm, "last"))
            await waits
            await waiting.aclose()
            assert (await last)[-1].error is None
            for _ in range(3):
                assert (await collect(llm, "one after the other"))[-1].error is None

    run(main())


def test_who_takes_the_place_of_one_that_leaves_comes_after_it(tiny_model: Path) -> None:
    """Else the engine would have more than it may, and its thread would end."""
    came: SimpleQueue[RequestOutput | Exception] = SimpleQueue()
    outbox = Mock(put=lambda item: came.put(item) or True)  # type: ignore[func-returns-value]

    async def main() -> None:
        async with AsyncLLM(tiny_model, num_kv_blocks=256, threads=1, max_num_seqs=1, max_queued=0) as llm:
            running = llm.generate("running", LONG)
            await anext(running)
            withdraw = llm.thread._prompts.withdraw

            def slowly(submission: Submission) -> None:
                withdraw(submission)
                threads.append(threading.Thread(target=llm.thread.submit, args=("next", GREEDY, None, outbox)))
                threads[-1].start()
                time.sleep(0.3)

            threads: list[threading.Thread] = []
            with patch.object(llm.thread._prompts, "withdraw", slowly):
                await running.aclose()  # type: ignore[attr-defined]
            while not isinstance(output := await asyncio.to_thread(came.get), RequestOutput) or not output.finished:
                assert isinstance(output, RequestOutput)
            assert output.error is None
            await llm.check_health()
            threads[0].join()

    run(main())


def test_nobody_waits_behind_many_requests_of_another(tiny_model: Path) -> None:
    """Not by being of another user, nor by a better priority or an earlier deadline: however many came before."""
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY)

    async def main(llm: AsyncLLM) -> None:
        ended: list[str] = []

        async def ask(name: str, prompt: str, **standing: Any) -> None:
            async for output in llm.generate(prompt, params, **standing):
                assert output.error is None
            ended.append(name)

        many = [asyncio.create_task(ask("many", f"{i}" * 100, user="many")) for i in range(300)]
        await asyncio.sleep(0.05)
        before = len(ended)
        few = [
            asyncio.create_task(ask("few", "a few", user="few")),
            asyncio.create_task(ask("better", "better", user="many", priority=-1)),
            asyncio.create_task(ask("urgent", "urgent", user="many", ttft_target=0.1)),
        ]
        await asyncio.gather(*few)
        assert len(ended) - before < 60
        for task in many[100:]:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        await until_idle(llm)

    async def opened() -> None:
        async with AsyncLLM(tiny_model, num_kv_blocks=256, threads=1, max_num_seqs=2) as llm:
            await main(llm)

    run(opened())
