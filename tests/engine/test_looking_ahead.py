"""A device that works by itself, whose place the CPU takes here, has the next step before the last tokens are known."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.computing import Launched, StepComputer
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.standing import Standing


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Takes effect on engines that are made from then on."""
    monkeypatch.setattr(ModelRunner, "is_ahead_of_device", True)
    return monkeypatch


def bits(outputs: list[RequestOutput]) -> list[Any]:
    return [
        (
            each.error,
            each.prompt_logprobs,
            [(o.token_ids, o.text, o.logprobs, o.finish_reason, o.stop_reason) for o in each.outputs],
        )
        for each in outputs
    ]


def watched_queue(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each step that is queued whether it is behind one whose tokens are not known."""
    queued: list[bool] = []
    launch = StepComputer.launch

    def launching(self: StepComputer, chunks: Any, behind: Launched | None = None) -> Launched:
        queued.append(behind is not None)
        return launch(self, chunks, behind)

    monkeypatch.setattr(StepComputer, "launch", launching)
    return queued


def some_params(draw: random.Random) -> SamplingParams:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.9, "top_p": 0.9, "seed": draw.randrange(100)},
        {"temperature": 1.0, "top_k": 20, "logprobs": 2},
        {"temperature": 0.7, "n": 3},
        {"temperature": 0, "min_tokens": 5, "stop_token_ids": list(range(1, 120))},
        {"temperature": 0, "stop_token_ids": list(range(1, 40)), "logprobs": 0},
        {"temperature": 1.0, "stop": ["a", "e"]},
        {"temperature": 0, "prompt_logprobs": 1},
        {"temperature": 1.0, "logit_bias": {7: 5.0}, "allowed_token_ids": list(range(1, 60))},
    ]
    if draw.random() < 0.1:  # whose next token depends on the last: no step is ahead where one runs
        kinds = [
            {"temperature": 0.8, "frequency_penalty": 0.5},
            {"temperature": 0, "bad_words": ["a"]},
            {"temperature": 0, "use_beam_search": True, "best_of": 2},
        ]
    return SamplingParams(**{"max_tokens": draw.randint(5, 25), **draw.choice(kinds)})


CONFIGS: list[dict[str, Any]] = [
    {},
    {"max_num_batched_tokens": 16, "max_num_seqs": 5},
    {"num_kv_blocks": 18, "predict_lengths": False},
    {"num_kv_blocks": 18, "predict_lengths": False, "swap_space": 0.001, "block_size": 8},
    {"policy": "static(batch_size=4)"},
    {"enable_prefix_caching": False, "kv_cache_dtype": "int8"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_answers_are_the_same(
    make_engine: MakeEngine, apart: pytest.MonkeyPatch, config: dict[str, Any], seed: int
) -> None:
    """Whatever arrives, ends, is preempted, or is given up while steps are on their way."""
    draw = random.Random(seed)
    shared = some_prompt(20)
    prompts = [shared[: draw.choice((0, 0, 8, 20))] + some_prompt(draw.randint(1, 40), seed=i) for i in range(30)]
    params = [some_params(draw) for _ in prompts]
    standings = [Standing(priority=draw.choice((0, 0, 1))) for _ in prompts]
    with apart.context() as context:
        context.setattr(ModelRunner, "is_ahead_of_device", False)
        wanted = bits(run(make_engine(**{"kv_cache_dtype": config.get("kv_cache_dtype", "auto")}), prompts, params))

    queued = watched_queue(apart)
    engine = make_engine(**config)
    given_up = set(draw.sample(range(len(prompts)), 4))
    waiting, outputs = list(range(len(prompts))), dict[str, RequestOutput]()
    while waiting or engine.has_unfinished():
        for _ in range(min(len(waiting), draw.choice((0, 0, 1, 4)))):
            i = waiting.pop(0)
            engine.add_request(str(i), prompts[i], params[i], index=i, standing=standings[i])
            if i in given_up:
                for _ in range(draw.randint(0, 6)):
                    outputs.update((output.request_id, output) for output in engine.step())
                engine.abort(str(i))
        outputs.update((output.request_id, output) for output in engine.step())
    for i, each in enumerate(wanted):
        if i not in given_up or str(i) in outputs:
            assert bits([outputs[str(i)]]) == [each], i
    assert sum(queued) > 10
    if "predict_lengths" in config:
        assert engine.metrics.preemptions > 0


def test_a_decoding_batch_is_always_a_step_ahead(make_engine: MakeEngine, apart: pytest.MonkeyPatch) -> None:
    queued = watched_queue(apart)
    engine = make_engine()
    run(engine, [some_prompt(5 + i) for i in range(4)], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    # The prompts' step and the first that decodes have none before.
    assert queued == [False, False, *[True] * 18]
    assert engine.metrics.output_tokens == 4 * 20


def test_a_token_too_many_is_taken_back(make_engine: MakeEngine, apart: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0, max_tokens=15, ignore_eos=True)
    (known,) = run(make_engine(), [some_prompt(17)], params)
    tokens = known.outputs[0].token_ids
    last = max(i for i, token in enumerate(tokens) if token not in tokens[:i])
    queued = watched_queue(apart)
    engine = make_engine(num_kv_blocks=8)
    ends = SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=[tokens[last]], max_tokens=100)
    (output,) = run(engine, [some_prompt(17)], ends)
    assert output.outputs[0].token_ids == tokens[: last + 1]
    assert len(queued) == last + 2
    engine.check_integrity()
    assert engine.num_kv_blocks_used == 0
    assert output.metrics.num_output_tokens == engine.metrics.output_tokens == last + 1
    (again,) = run(engine, [[*some_prompt(17), *tokens[:10]]], params)
    assert again.num_cached_tokens == min(17 + last, 26)
    assert again.outputs[0].token_ids[:5] == tokens[10:]


@pytest.mark.parametrize("stage", ["launch", "sample", "read"])
def test_a_fault_ends_one_request_and_changes_no_other(
    make_engine: MakeEngine, apart: pytest.MonkeyPatch, stage: str
) -> None:
    prompts = [some_prompt(5 + i) for i in range(6)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=1)
    wanted = bits(run(make_engine(), prompts, params))
    engine = make_engine()
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params, index=i)
    for _ in range(6):
        engine.step()
    run_model, sample = ModelRunner.run, Sampler.sample

    def bad(sequences: Any) -> bool:
        return any(sequence.request.request_id == "3" for sequence in sequences)

    def running(self: ModelRunner, chunks: Any, *more: Any) -> Any:
        if stage == "launch" and bad(chunk.sequence for chunk in chunks):
            raise LookupError("injected")
        return run_model(self, chunks, *more)

    def sampling(self: Sampler, logits: Any, sequences: Any, *more: Any) -> Any:
        if stage == "sample" and bad(sequences):
            raise LookupError("injected")
        drawn = sample(self, logits, sequences, *more)

        def read() -> Any:
            if stage == "read" and bad(sequences):
                raise LookupError("injected")
            return drawn.read()

        return drawn._replace(read=read)

    apart.setattr(ModelRunner, "run", running)
    apart.setattr(Sampler, "sample", sampling)
    outputs = {output.request_id: output for output in drain(engine)}
    assert outputs["3"].error == "LookupError: injected"
    for i, each in enumerate(wanted):
        if i != 3:
            assert bits([outputs[str(i)]]) == [each]


def test_logits_that_are_no_numbers_end_one_request(make_engine: MakeEngine, apart: pytest.MonkeyPatch) -> None:
    prompts = [some_prompt(5 + i) for i in range(4)]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    wanted = bits(run(make_engine(), prompts, params))
    sample = Sampler.sample

    def sampling(self: Sampler, logits: torch.Tensor, sequences: Any, *more: Any) -> Any:
        for row, sequence in enumerate(sequences):
            if sequence.request.request_id == "2" and len(sequence.tokens) > 10:
                logits[row] = torch.nan
        return sample(self, logits, sequences, *more)

    apart.setattr(Sampler, "sample", sampling)
    outputs = run(make_engine(), prompts, params)
    assert outputs[2].error is not None
    assert "not finite" in outputs[2].error
    assert [each for i, each in enumerate(bits(outputs)) if i != 2] == [each for i, each in enumerate(wanted) if i != 2]


def test_nothing_is_ahead_on_a_cpu(make_engine: MakeEngine) -> None:
    assert not make_engine()._looks_ahead
