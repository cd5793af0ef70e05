"""A model with recurrent states through the whole engine: the same bits in any company, pieces and order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.runs import drain, memory_for_states, run, some_prompt
from model.families import make, save

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.speculative_config import SpeculativeConfig
from pybatch.engine.standing import Standing
from pybatch.model import Decoder, load_model

SHARED = some_prompt(40, 99, vocab=200)
PROMPTS = [(SHARED if i % 2 else []) + some_prompt(1 + 7 * i % 90, i, vocab=200) for i in range(16)]
PARAMS = [
    SamplingParams(temperature=0.9 * (i % 2), max_tokens=5 + i % 30, ignore_eos=True, logprobs=1, seed=i)
    for i in range(16)
]
Bits = list[Any]


def bits(outputs: list[RequestOutput]) -> Bits:
    assert not any(output.error for output in outputs)
    return [[(each.token_ids, each.logprobs) for each in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("qwen3_5"), tmp_path_factory.mktemp("qwen3_5"))


@pytest.fixture(scope="module", params=[("float32", None, "auto"), ("auto", "int8", "int8")], ids=str)
def model(request: pytest.FixtureRequest, path: Path) -> tuple[Decoder, str]:
    dtype, quantization, kv_cache_dtype = request.param
    return load_model(path, dtype=dtype, quantization=quantization, skip_tokenizer=True).decoder, kv_cache_dtype


@pytest.fixture(scope="module")
def decoder(path: Path) -> Decoder:
    return load_model(path, skip_tokenizer=True).decoder


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """When the test is over none may have lost a block or a slot."""
    made: list[Engine] = []
    yield made
    for engine in made:
        engine.check_integrity()


def engine_of(decoder: Decoder, engines: list[Engine], **config: Any) -> Engine:
    engines.append(Engine(decoder, None, EngineConfig(**{"num_kv_blocks": 512, **config})))
    return engines[-1]


@pytest.fixture(scope="module")
def expected(model: tuple[Decoder, str]) -> Bits:
    """Each request alone, its prompt in one piece, nothing cached."""
    config = EngineConfig(num_kv_blocks=64, enable_prefix_caching=False, kv_cache_dtype=model[1])
    engine = Engine(model[0], None, config)
    return [bits(run(engine, [prompt], params))[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]


@pytest.mark.parametrize(
    ("threads", "config"),
    [
        (2, {"max_num_batched_tokens": 4096}),
        (1, {"max_num_seqs": 7, "max_num_batched_tokens": 13, "enable_prefix_caching": False}),
        (2, {"num_kv_blocks": 12, "predict_lengths": False}),
    ],
    ids=str,
)
def test_a_batch_changes_no_bit(
    model: tuple[Decoder, str], engines: list[Engine], expected: Bits, threads: int, config: dict[str, Any]
) -> None:
    torch.set_num_threads(threads)
    engine = engine_of(model[0], engines, kv_cache_dtype=model[1], **config)
    for _ in range(2):  # the second time over, from kept states
        assert bits(run(engine, PROMPTS, PARAMS)) == expected
    torch.set_num_threads(1)
    assert engine.metrics.preemptions > 0 or "num_kv_blocks" not in config
    assert (engine.metrics.cached_tokens > 0) == config.get("enable_prefix_caching", True)


def test_samples_are_those_of_requests_alone(decoder: Decoder, engines: list[Engine]) -> None:
    params = SamplingParams(n=4, temperature=1.0, max_tokens=20, ignore_eos=True, seed=3)
    wanted = bits(run(engine_of(decoder, engines, enable_prefix_caching=False), [PROMPTS[5]], params))
    tight = engine_of(decoder, engines, num_kv_blocks=10, predict_lengths=False)
    outputs = run(tight, PROMPTS[4:8], params)
    assert bits(outputs)[1] == wanted[0]
    assert len({tuple(tokens) for tokens, _ in wanted[0]}) == 4
    again = run(engine_of(decoder, engines, max_num_batched_tokens=8), [PROMPTS[5]], params)
    assert bits(again) == wanted


def searched(width: int, *, max_tokens: int = 12) -> SamplingParams:
    return SamplingParams(n=width, use_beam_search=True, max_tokens=max_tokens, ignore_eos=True)


def test_beams_change_no_bit_in_any_company(decoder: Decoder, engines: list[Engine]) -> None:
    params = searched(3)
    wanted = [bits(run(engine_of(decoder, engines), [prompt], params))[0] for prompt in PROMPTS[:6]]
    tight = engine_of(decoder, engines, num_kv_blocks=12, predict_lengths=False, max_num_batched_tokens=32)
    assert bits(run(tight, PROMPTS[:6], params)) == wanted
    assert tight.metrics.preemptions > 0


@pytest.mark.parametrize("length", [3, 80, 90])
@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_preempted_beams_share_their_prompt_again(
    decoder: Decoder, engines: list[Engine], length: int, enable_prefix_caching: bool
) -> None:
    """The pool does not hold it three times. The first computes it again, and all go on from one state."""
    beams, prompt = searched(3, max_tokens=20), some_prompt(length, 5, vocab=200)
    settings = {"num_kv_blocks": 12, "max_num_seqs": 3, "enable_prefix_caching": enable_prefix_caching}
    engine = engine_of(decoder, engines, max_num_batched_tokens=32, **settings)
    engine.add_request("beams", prompt, beams, standing=Standing(priority=1))
    found: list[RequestOutput] = []
    for i in range(3):
        found += [output for _ in range(12) for output in engine.step()]
        engine.add_request(f"better {i}", PROMPTS[2], PARAMS[2])
    found += drain(engine)
    assert engine.metrics.preemptions > 1
    alone = engine_of(decoder, engines)
    assert bits([output for output in found if output.request_id == "beams"]) == bits(run(alone, [prompt], beams))
    assert bits([found[0]]) == bits(run(alone, [PROMPTS[2]], PARAMS[2]))


def outcome(engine: Engine, prompt: list[int], params: SamplingParams) -> str | None:
    """Why a request is refused; None if it ends."""
    try:
        engine.add_request("0", prompt, params)
    except ValueError as error:
        return str(error)
    outputs = [output for _ in range(1000) if engine.has_unfinished() for output in engine.step()]
    assert outputs, "it waits for ever"
    bits(outputs)
    return None


def test_more_beams_than_there_are_states_for_are_refused(decoder: Decoder, engines: list[Engine]) -> None:
    with memory_for_states(decoder, 5):
        engine = engine_of(decoder, engines, max_num_seqs=8)
    assert outcome(engine, SHARED, searched(3)) == (
        "n: 3 beams have 6 recurrent states, but there is memory for 5; give at most 2, or raise memory_utilization"
    )
    assert outcome(engine, SHARED, searched(2)) is None
    assert outcome(engine, SHARED, SamplingParams(n=3, max_tokens=5)) is None  # samples need not be in a step together


@pytest.mark.parametrize("num_states", [6, 12])
def test_a_request_counts_on_a_pin_only_where_its_state_is_kept(
    decoder: Decoder, engines: list[Engine], num_states: int
) -> None:
    """Of eight blocks of 16 tokens three are pinned. With two of these a request has room for seven."""
    with memory_for_states(decoder, num_states):
        engine = engine_of(decoder, engines, num_kv_blocks=8, max_num_seqs=3)
    pin = engine.pin_prefix("pin", SHARED)
    list(drain(engine))
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    for num_shared in (0, 20, 32, 40):
        room = 7 if num_shared >= 32 and num_states == 12 else 5
        refusals = []
        for blocks in (8, 7, 6, 5):
            prompt = [*SHARED[:num_shared], *some_prompt(16 * blocks - 1 - num_shared, blocks, vocab=200)]
            refusals.append(outcome(engine, prompt, params))
        assert refusals.count(None) == room - 4
        assert all(f"of which {16 * room} tokens are free" in refused for refused in refusals if refused is not None)
    engine.unpin(pin)


def test_a_step_that_is_tried_again_changes_no_bit(
    decoder: Decoder, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling fails after the model has run, now and then: the step is computed again, in halves."""
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
    wanted = bits(run(engine_of(decoder, engines), PROMPTS[:6], params))
    sample, calls = Sampler.sample, iter(range(1000))

    def failing(self: Sampler, logits: torch.Tensor, sequences: list[Any], *rest: Any) -> Any:
        if len(sequences) > 1 and next(calls) % 3 == 0:
            raise ValueError("once")
        return sample(self, logits, sequences, *rest)

    monkeypatch.setattr(Sampler, "sample", failing)
    assert bits(run(engine_of(decoder, engines), PROMPTS[:6], params)) == wanted
    assert next(calls) > 10


def test_a_pinned_prefix_is_found_behind_others(decoder: Decoder, engines: list[Engine]) -> None:
    engine = engine_of(decoder, engines, max_num_seqs=2)
    pin = engine.pin_prefix("pin", SHARED)
    list(drain(engine))
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    run(engine, [some_prompt(60, i, vocab=200) for i in range(30)], params)
    (output,) = run(engine, [[*SHARED, 5, 6, 7]], params)
    assert output.num_cached_tokens == len(SHARED) // 16 * 16
    engine.unpin(pin)
    assert engine.reset_prefix_cache()
    (output,) = run(engine, [[*SHARED, 5, 6, 7]], params)
    assert output.num_cached_tokens == 0


def test_the_next_turn_of_a_chat_goes_on_from_the_answer(decoder: Decoder, engines: list[Engine]) -> None:
    engine = engine_of(decoder, engines)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    (output,) = run(engine, [SHARED], params)
    known = [*SHARED, *output.outputs[0].token_ids]
    (turn,) = run(engine, [[*known, 7, 8, 9]], params)
    assert turn.num_cached_tokens == (len(known) - 1) // 16 * 16
    assert bits([turn]) == bits(run(engine_of(decoder, engines), [[*known, 7, 8, 9]], params))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"speculative_config": SpeculativeConfig(method="ngram")}, "speculative_config: this model's recurrent"),
        ({"swap_space": 1.0}, "swap_space: this model's recurrent states"),
        ({"prefix_cache_dir": "somewhere"}, "prefix_cache_dir: this model's recurrent states"),
        ({"memory_utilization": 1e-9}, "memory_utilization: half of 1e-09 .* two recurrent states of"),
    ],
    ids=str,
)
def test_what_does_not_go_with_states_is_refused(decoder: Decoder, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Engine(decoder, None, EngineConfig(**config))


def test_a_cache_policy_is_refused(decoder: Decoder, engines: list[Engine]) -> None:
    params = SamplingParams(kv_policy=StreamingLLM(sinks=4, window=32))
    with pytest.raises(ValueError, match="the model has recurrent states, of which nothing can be dropped"):
        engine_of(decoder, engines).add_request("0", SHARED, params)
