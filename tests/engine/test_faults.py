"""A step that raises for one request ends that request alone, and no token of another changes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from engine.fuzz import BLOCK, LONGEST, REQUESTS, alone, least_blocks
from engine.runs import MakeEngine, drain, some_prompt

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.detokenizer import Detokenizer
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.scheduling.admission import Admission
from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.joining import Joining
from pybatch.engine.scheduling.promises import Promises
from pybatch.engine.scheduling.scheduler import Scheduler

SHARED = some_prompt(40, 99)
PROMPTS = {
    "first": some_prompt(20),
    "bad": [*SHARED, 7],
    "sharing": [*SHARED, 9, 11],  # joins in the step in which "bad" fills the blocks
    "long": some_prompt(150),
    "two": [*SHARED, 13],
}
PARAMS = {
    "first": SamplingParams(temperature=0, max_tokens=3, ignore_eos=True),
    "bad": SamplingParams(seed=1, max_tokens=40, ignore_eos=True, logprobs=7, prompt_logprobs=6, stop=["zz"]),
    "sharing": SamplingParams(seed=2, max_tokens=25, ignore_eos=True, logprobs=2),
    "long": SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, frequency_penalty=0.5),
    "two": SamplingParams(n=2, seed=3, max_tokens=20, ignore_eos=True),
}
Patch = Callable[..., None]


@pytest.fixture
def raise_where(monkeypatch: pytest.MonkeyPatch) -> Patch:
    def patch(
        cls: type, name: str, is_wrong: Callable[..., bool], *, after: bool = False, error: BaseException | None = None
    ) -> None:
        """The method raises where is_wrong says so of its arguments, before its work or after it."""
        real = getattr(cls, name)

        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            wrong = is_wrong(*args, **kwargs)
            result = None if wrong and not after else real(self, *args, **kwargs)
            if wrong:
                raise error or LookupError("injected")
            return result

        monkeypatch.setattr(cls, name, wrapper)

    return patch


def submit(engine: Engine, *, without: str = "", params: dict[str, SamplingParams] = PARAMS) -> None:
    for i, (name, prompt) in enumerate(PROMPTS.items()):
        if name != without:
            engine.add_request(name, prompt, params[name], index=i)


def finish(engine: Engine, found: dict[str, RequestOutput] | None = None) -> dict[str, RequestOutput]:
    found = {} if found is None else found
    while engine.has_unfinished():
        for output in engine.step():
            assert output.request_id not in found
            found[output.request_id] = output
        engine.check_integrity()
    return found


def without_metrics(outputs: dict[str, RequestOutput]) -> dict[str, Any]:
    return {name: (output.error, output.outputs, output.prompt_logprobs) for name, output in outputs.items()}


def is_bad(request: Any) -> bool:
    return bool(request.request_id == "bad")


def in_chunks(chunks: Any, *rest: Any) -> bool:
    return any(is_bad(chunk.sequence.request) for chunk in chunks)


STAGES: dict[str, tuple[type, str, Callable[..., bool]]] = {
    "scheduling": (Joining, "join", lambda sequence, *rest, **more: is_bad(sequence.request)),
    "inputs": (ModelRunner, "run", in_chunks),
    "model": (ModelRunner, "run", in_chunks),
    "sampling": (Sampler, "sample", lambda logits, sequences, *drafts: any(is_bad(s.request) for s in sequences)),
    "logprobs": (Sampler, "logprobs", lambda logits, tokens, counts: 7 in counts),
    "prompt_logprobs": (Sampler, "logprobs", lambda logits, tokens, counts: 6 in counts),
    "text": (Detokenizer, "add", lambda *args, **kwargs: True),  # only "bad" has stop strings
}


@pytest.mark.parametrize(
    "config",
    [{}, {"max_num_batched_tokens": 24}, {"num_kv_blocks": 14}, {"speculative_config": '{"prompt_lookup_min": 1}'}],
    ids=str,
)
@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_in_any_stage_ends_one_request(
    make_engine: MakeEngine, raise_where: Patch, stage: str, steps: int, config: dict[str, Any]
) -> None:
    """At once, and after so many steps."""
    expected = make_engine(**config)
    submit(expected)
    healthy = without_metrics(finish(expected))
    engine = make_engine(**config)
    submit(engine)
    found: dict[str, RequestOutput] = {}
    for _ in range(steps):
        found.update((output.request_id, output) for output in engine.step())
    raise_where(*STAGES[stage], after=stage == "model")
    finish(engine, found)
    bad = found.pop("bad")
    healthy_bad = healthy.pop("bad")
    assert without_metrics(found) == healthy
    if bad.error is None:  # it was past that stage
        assert (stage, steps) in {("scheduling", 4), ("prompt_logprobs", 4)}
        assert bad.outputs == healthy_bad[1]
        return
    assert bad.error == "LookupError: injected"
    assert bad.outputs[0].finish_reason == "error"
    tokens = bad.outputs[0].token_ids
    assert tokens == healthy_bad[1][0].token_ids[: len(tokens)]
    # What it was to compute is not found in the prefix cache.
    for name, output in finish_again(engine).items():
        assert output.outputs == healthy[name][1]


def finish_again(engine: Engine) -> dict[str, RequestOutput]:
    submit(engine, without="bad")
    return finish(engine)


@pytest.mark.parametrize("poison", ["keys", "blocks", "tokens"])
def test_a_broken_sequence_ends_alone(make_engine: MakeEngine, poison: str) -> None:
    """What scheduling and the batch's inputs are made of."""
    expected = make_engine()
    submit(expected)
    healthy = without_metrics(finish(expected))
    engine = make_engine()
    submit(engine)
    found = {output.request_id: output for _ in range(4) for output in engine.step()}
    (sequence,) = engine._requests.unfinished["bad"].sequences
    blocks = sequence.blocks
    setattr(sequence, poison, None if poison == "keys" else sequence.blocks[:0])
    if poison == "blocks":  # they are not given back, for nobody knows of them
        engine._pool.release(blocks)
    finish(engine, found)
    assert found["bad"].error is not None
    del found["bad"], healthy["bad"]
    assert without_metrics(found) == healthy


def test_a_fault_while_samples_part_ends_one_request(make_engine: MakeEngine, raise_where: Patch) -> None:
    raise_where(KvCache, "copy_blocks", lambda pairs: True)
    engine, healthy = (make_engine(enable_prefix_caching=False) for _ in range(2))  # so that nothing else is copied
    for each in (engine, healthy):
        submit(each, without="two" if each is healthy else "")
    found, expected = finish(engine), finish(healthy)
    two = found.pop("two")
    assert two.error == "LookupError: injected"
    assert [sample.finish_reason for sample in two.outputs] == ["error", "error"]
    assert without_metrics(found) == without_metrics(expected)


def test_a_panic_that_is_no_exception_ends_one_request(make_engine: MakeEngine, raise_where: Patch) -> None:
    class Panic(BaseException):
        pass

    raise_where(Detokenizer, "add", lambda *args, **kwargs: True, error=Panic("boom"))
    engine = make_engine()
    submit(engine)
    found = finish(engine)
    assert {name: output.error for name, output in found.items() if output.error} == {"bad": "Panic: boom"}


@pytest.mark.parametrize(("cls", "method"), [(ModelRunner, "run"), (Sampler, "sample"), (Scheduler, "schedule")])
def test_where_everything_fails_each_gets_the_error(
    make_engine: MakeEngine, raise_where: Patch, cls: type, method: str
) -> None:
    engine = make_engine()
    submit(engine)
    raise_where(cls, method, lambda *args: True)
    found = finish(engine)
    assert {output.error for output in found.values()} == {"LookupError: injected"}
    assert found.keys() == PROMPTS.keys()


@pytest.mark.parametrize("steps", [{0}, {5}, {1, 50}])
def test_where_no_request_can_be_named_all_begin_again_and_no_token_changes(
    make_engine: MakeEngine, raise_where: Patch, steps: set[int]
) -> None:
    healthy, engine = make_engine(), make_engine(max_num_seqs=2, max_num_batched_tokens=32)
    submit(healthy)
    submit(engine)
    expected = without_metrics(finish(healthy))
    calls = itertools.count()  # of a policy: one a step while requests wait
    raise_where(Admission, "joined", lambda count, full: next(calls) in steps, after=True)
    assert without_metrics(finish(engine)) == expected
    assert next(calls) > max(steps)


def test_a_batch_that_fails_as_a_whole_runs_in_parts(make_engine: MakeEngine, raise_where: Patch) -> None:
    healthy, engine = make_engine(), make_engine()
    submit(healthy)
    submit(engine)
    raise_where(ModelRunner, "run", lambda chunks: len(chunks) > 1)
    assert without_metrics(finish(engine)) == without_metrics(finish(healthy))


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyboardInterrupt()], ids=repr
)
def test_a_fault_of_the_machine_is_raised_and_leaves_an_engine_that_runs(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    engine = make_engine()
    submit(engine)
    healthy = without_metrics(finish(engine))
    submit(engine)
    engine.step()
    with monkeypatch.context() as context:
        context.setattr(ModelRunner, "run", Mock(side_effect=error))
        with pytest.raises(type(error)):
            engine.step()
    assert not engine.has_unfinished()
    engine.check_integrity()
    assert engine.take_outputs() == []
    submit(engine)
    assert without_metrics(finish(engine)) == healthy


def test_what_finished_in_a_step_that_raises_is_not_lost(make_engine: MakeEngine, raise_where: Patch) -> None:
    engine = make_engine()
    engine.add_request("done", [5, 6], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    engine.add_request("text", [7, 8], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, stop="zz"))
    assert engine.step() == []
    raise_where(Detokenizer, "add", lambda *args, **kwargs: True, error=MemoryError())
    with pytest.raises(MemoryError):
        engine.step()
    (output,) = engine.take_outputs()
    assert (output.request_id, output.error, len(output.outputs[0].token_ids)) == ("done", None, 2)
    assert engine.take_outputs() == []
    assert not engine.has_unfinished()
    assert list(drain(engine)) == []


FAULTY: list[tuple[type, str, Callable[..., list[Any]], bool]] = [
    (ModelRunner, "run", lambda chunks: [chunk.sequence.request for chunk in chunks], False),
    (Sampler, "sample", lambda logits, sequences, *drafts: [sequence.request for sequence in sequences], True),
    (Joining, "join", lambda sequence, *rest, **more: [sequence.request], False),
    (BlockTables, "register", lambda sequence, *rest: [sequence.request], True),
    (Promises, "take", lambda sequence, *rest, **more: [sequence.request], False),
]


def test_random_faults_change_no_bit_of_others(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random batches in engines of random settings, where some of the requests fail now and then."""
    reference = alone(tiny_model, None, "auto")
    draw, rate, faulty, hits = random.Random(0), 0.0, set[str](), 0

    def perhaps_raise(requests: list[Any]) -> None:
        nonlocal hits
        if any(request.request_id in faulty and draw.random() < rate for request in requests):
            hits += 1
            raise LookupError("injected")

    def wrap(real: Callable[..., Any], requests_of: Callable[..., list[Any]], after: bool) -> Callable[..., Any]:
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not after:
                perhaps_raise(requests_of(*args, **kwargs))
            result = real(self, *args, **kwargs)
            if after:
                perhaps_raise(requests_of(*args, **kwargs))
            return result

        return wrapper

    for cls, name, requests_of, after in FAULTY:
        monkeypatch.setattr(cls, name, wrap(getattr(cls, name), requests_of, after))
    survivors = 0
    for _ in range(40):
        chosen = [draw.randrange(REQUESTS) for _ in range(draw.choice((2, 3, 7, 16)))]
        engine = reference.engine(
            EngineConfig(
                block_size=BLOCK,
                policy=draw.choice(("continuous", "continuous", "static", "dynamic(max_wait=0.001)", "micro")),
                max_num_seqs=draw.choice((1, 2, 7, 64)),
                max_num_batched_tokens=draw.choice((3, 16, 64, 512)),
                num_kv_blocks=least_blocks(reference, chosen, [LONGEST] * len(chosen)) + draw.choice((0, 1, 8, 600)),
                enable_prefix_caching=draw.random() < 0.8,
            ),
        )
        faulty = {str(i) for i in range(len(chosen)) if draw.random() < 0.3}
        rate = draw.choice((0.02, 0.1, 0.5, 1.0))
        for i, which in enumerate(chosen):
            engine.add_request(str(i), reference.prompts[which], reference.params[which])
        for name, output in finish(engine).items():
            survivors += output.error is None
            assert output.error is None or name in faulty
            for found, expected in zip(output.outputs, reference.samples[chosen[int(name)]], strict=True):
                count = len(found.token_ids)
                assert found.token_ids == expected.token_ids[:count]
                if output.error is None:
                    assert (count, found.logprobs) == (len(expected.token_ids), expected.logprobs)
    assert hits > 50
    assert survivors > 100
