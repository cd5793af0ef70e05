"""Prompts pooled to vectors, against transformers' hidden states pooled by torch; and bit for bit in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine.runs import drain, run
from model.families import make, reference_logits, save, some_ids
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.pooling_params import PoolingParams
from pybatch.model import LoadedModel, load_model
from pybatch.model.pooling import LAST, MEAN, METHODS, PoolingConfig

PROMPTS = [some_ids(length) for length in (1, 2, 17, 64, 150, 300)]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("qwen3")


@pytest.fixture(scope="module")
def loaded(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(save(model, tmp_path_factory.mktemp("qwen3")), skip_tokenizer=True)


def hidden_states(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    return states


def expected(states: torch.Tensor, method: str) -> torch.Tensor:
    count = len(states)
    weights = torch.arange(1, count + 1, dtype=torch.float32)[:, None]
    return {
        "cls": lambda: states[0],
        "max": lambda: states.max(0).values,
        "mean": lambda: states.mean(0),
        "mean_sqrt_len_tokens": lambda: states.sum(0) / count**0.5,
        "weightedmean": lambda: (states * weights).sum(0) / weights.sum(),
        "lasttoken": lambda: states[-1],
    }[method]()


def engine_of(loaded: LoadedModel, *methods: str, normalize: bool = True, blocks: int = 256, **config: int) -> Engine:
    pooling = PoolingConfig(methods=methods, normalize=normalize)
    return Engine(loaded.decoder, None, EngineConfig(num_kv_blocks=blocks, **config), pooling=pooling)


def vectors(outputs: list[RequestOutput]) -> list[torch.Tensor]:
    assert [output.error for output in outputs] == [None] * len(outputs)
    return [torch.from_numpy(output.pooled) for output in outputs]


@pytest.mark.parametrize("method", METHODS)
def test_pooled_states_are_those_of_transformers(model: PreTrainedModel, loaded: LoadedModel, method: str) -> None:
    engine = engine_of(loaded, method, normalize=False, max_num_batched_tokens=100)
    for ids, vector in zip(PROMPTS, vectors(run(engine, PROMPTS, PoolingParams())), strict=True):
        torch.testing.assert_close(vector, expected(hidden_states(model, ids), method), rtol=1e-4, atol=1e-4)
    engine.check_integrity()


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_has_the_same_bits_alone_and_in_chunks_beside_others(loaded: LoadedModel, method: str) -> None:
    whole, chunked = engine_of(loaded, method), engine_of(loaded, method, max_num_batched_tokens=24, max_num_seqs=5)
    others = [SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)] * len(PROMPTS)
    mixed = run(chunked, PROMPTS + PROMPTS[::-1], [PoolingParams()] * len(PROMPTS) + others)
    for ids, output in zip(PROMPTS, mixed, strict=False):
        (alone,) = run(whole, [ids], PoolingParams())
        assert alone.pooled is not None
        assert np.array_equal(alone.pooled, output.pooled)
    assert [len(output.outputs[0].token_ids) for output in mixed[len(PROMPTS) :]] == [9] * len(PROMPTS)


def test_quantised_weights_and_threads_change_no_bit_either(model: PreTrainedModel, tmp_path: Path) -> None:
    loaded = load_model(save(model, tmp_path), quantization="int8", skip_tokenizer=True)
    whole, chunked = engine_of(loaded, MEAN, LAST), engine_of(loaded, MEAN, LAST, max_num_batched_tokens=24)
    threads = torch.get_num_threads()
    together = run(chunked, PROMPTS, PoolingParams())
    try:
        torch.set_num_threads(2)
        for ids, output in zip(PROMPTS, together, strict=True):
            (alone,) = run(whole, [ids], PoolingParams())
            assert np.array_equal(alone.pooled, output.pooled)
    finally:
        torch.set_num_threads(threads)


def test_requests_that_generate_are_not_changed_by_those_that_do_not(loaded: LoadedModel) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, logprobs=2)
    alone = run(engine_of(loaded, LAST), PROMPTS, params)
    beside = run(engine_of(loaded, LAST), PROMPTS * 2, [params] * len(PROMPTS) + [PoolingParams()] * len(PROMPTS))
    assert [output.outputs for output in beside[: len(PROMPTS)]] == [output.outputs for output in alone]


def test_several_methods_follow_one_another_in_the_vector(model: PreTrainedModel, loaded: LoadedModel) -> None:
    (vector,) = vectors(run(engine_of(loaded, MEAN, LAST), PROMPTS[3:4], PoolingParams()))
    states = hidden_states(model, PROMPTS[3])
    both = torch.cat([states.mean(0), states[-1]])
    torch.testing.assert_close(vector, normalize(both, dim=0), rtol=1e-4, atol=1e-5)


def test_dimensions_are_the_first_ones_normalised(model: PreTrainedModel, loaded: LoadedModel) -> None:
    engine, ids = engine_of(loaded, LAST), PROMPTS[4]
    last = hidden_states(model, ids)[-1]
    for params, reference in (
        (PoolingParams(), normalize(last, dim=0)),
        (PoolingParams(dimensions=16), normalize(last[:16], dim=0)),
        (PoolingParams(dimensions=16, normalize=False), last[:16]),
    ):
        (vector,) = vectors(run(engine, [ids], params))
        torch.testing.assert_close(vector, reference, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="dimensions: expected at most 64, the model's, got 65"):
        engine.add_request("x", ids, PoolingParams(dimensions=65))


def test_a_prefix_is_shared_where_the_last_token_alone_counts(loaded: LoadedModel) -> None:
    prefix = some_ids(96)
    for method, found in ((LAST, 96), (MEAN, 0)):
        engine = engine_of(loaded, method)
        (first,) = run(engine, [[*prefix, 7, 8]], PoolingParams())
        (second,) = run(engine, [[*prefix, 9]], PoolingParams())
        (again,) = run(engine, [[*prefix, 7, 8]], PoolingParams())
        assert (first.num_cached_tokens, second.num_cached_tokens) == (0, found)
        assert np.array_equal(again.pooled, first.pooled)


def test_preempted_prompts_are_pooled_as_if_they_were_not(loaded: LoadedModel) -> None:
    """The pool holds one and a half of them; better priorities come in the middle."""
    from pybatch.engine.standing import Standing

    engine = engine_of(loaded, MEAN, blocks=30, max_num_batched_tokens=32)
    engine.add_request("late", PROMPTS[5], PoolingParams(), standing=Standing(priority=1))
    outputs = {}
    for number in range(6):
        outputs |= {output.request_id: output for output in engine.step()}
        if number == 4:
            engine.add_request("soon", some_ids(290), PoolingParams())
    outputs |= {output.request_id: output for output in drain(engine)}
    (alone,) = run(engine_of(loaded, MEAN), [PROMPTS[5]], PoolingParams())
    assert engine.metrics.summary().preemptions > 0
    assert np.array_equal(outputs["late"].pooled, alone.pooled)
    engine.check_integrity()


def test_a_prompt_may_fill_the_context_and_is_cut_at_its_end(loaded: LoadedModel) -> None:
    engine = engine_of(loaded, LAST, max_model_len=40)
    ids = [*some_ids(60), 2]  # 2 ends sequences
    with pytest.raises(ValueError, match="prompt: 61 tokens do not fit max_model_len = 40"):
        engine.add_request("x", ids, PoolingParams())
    for keep, kept in ((40, [*ids[:39], 2]), (-1, [*ids[:39], 2]), (3, [*ids[:2], 2])):
        cut, whole = run(engine, [ids, kept], [PoolingParams(truncate_prompt_tokens=keep), PoolingParams()])
        assert cut.prompt_token_ids == kept
        assert np.array_equal(cut.pooled, whole.pooled)
    (bare,) = run(engine, [ids[:60]], PoolingParams(truncate_prompt_tokens=5))
    assert bare.prompt_token_ids == ids[:5]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"task": "classify"}, "task: expected one of embed, score, got 'classify'"),
        ({"dimensions": 0}, "dimensions: expected a positive integer, got 0"),
        ({"normalize": 1}, "normalize: expected True, False or None, got 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens: expected a positive integer, got -2"),
    ],
)
def test_wrong_parameters_are_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PoolingParams(**wrong)


def test_states_that_are_no_numbers_are_their_requests_error(loaded: LoadedModel, tmp_path: Path) -> None:
    broken = make("qwen3")
    with torch.no_grad():
        broken.get_input_embeddings().weight[5] = float("nan")
    engine = engine_of(load_model(save(broken, tmp_path), skip_tokenizer=True), LAST)
    bad, good = run(engine, [[7, 5], [7, 6]], PoolingParams())
    assert (bad.error, bad.pooled) == ("ArithmeticError: the model's hidden states are not finite", None)
    assert good.error is None
    engine.check_integrity()


@pytest.mark.parametrize("family", ["phi", "cohere", "gemma2"])
def test_words_score_by_the_logits_that_the_model_draws_by(family: str, tmp_path: Path) -> None:
    """With the bias of the head, and scaled or capped as the family has it."""
    model, labels = make(family), (11, 7)
    decoder = load_model(save(model, tmp_path), skip_tokenizer=True).decoder
    pooling = PoolingConfig(methods=(LAST,), normalize=True)
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64), pooling=pooling, labels=labels)
    (output,) = run(engine, [PROMPTS[3]], PoolingParams(task="score"))
    share = reference_logits(model, PROMPTS[3])[-1, list(labels)].softmax(0)[0]
    assert output.pooled[0] == pytest.approx(float(share), abs=1e-5)
