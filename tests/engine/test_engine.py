from __future__ import annotations

import gc
import math
import weakref
from copy import copy
from itertools import islice
from typing import Any

import pytest
import torch
from engine.runs import EOS, MakeEngine, drain, run, some_prompt
from transformers import LlamaForCausalLM

from pybatch.engine import Engine, EngineConfig, RequestOutputKind, SamplingParams
from pybatch.engine.errors import QueueFullError
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.scheduling.sequence import Request
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.model import Decoder, Tokenizer
from pybatch.model.layers import DenseLinear
from pybatch.model.text.token_text import TextStream

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


# ---- right answers ----


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_greedy_tokens_are_transformers(make_engine: MakeEngine, reference: LlamaForCausalLM, batch: int) -> None:
    lengths = [1, 300, 2, 17, 150, 16, 33, 64, *range(3, 51, 2)][:batch]
    prompts = [some_prompt(length) for length in lengths]
    outputs = run(make_engine(num_kv_blocks=200), prompts, GREEDY)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert_greedy(reference, prompt, output.outputs[0].token_ids)


def assert_greedy(reference: LlamaForCausalLM, prompt: list[int], tokens: list[int]) -> None:
    """Each token is transformers' likeliest after the ones before it, and so all are what it would generate. A first
    difference counts only where its two best logits are not a near tie."""
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    for step, (token, row) in enumerate(zip(tokens, logits, strict=True)):
        best = row.topk(2)
        if token != int(best.indices[0]):
            assert best.values[0] - best.values[1] < 1e-3, f"token {step}: {token} instead of {int(best.indices[0])}"
            return


def test_logprobs_are_transformers(make_engine: MakeEngine, reference: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    prompt = some_prompt(21)
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=6, ignore_eos=True, logprobs=3, prompt_logprobs=2)
    output = run(make_engine(max_num_batched_tokens=8, max_num_seqs=2), [prompt], params)[0]
    tokens = output.outputs[0].token_ids
    with torch.no_grad():
        expected = reference(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert output.outputs[0].logprobs is not None
    entries = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    assert len(entries) == len(prompt) + len(tokens) - 1
    for i, (token, entry) in enumerate(zip((prompt + tokens)[1:], entries, strict=True)):
        assert entry is not None
        assert next(iter(entry)) == token
        top = 2 if i < len(prompt) - 1 else 3
        ranked = expected[i].topk(top).indices.tolist()
        assert set(entry) == {token, *ranked}
        for candidate, found in entry.items():
            assert found.logprob == pytest.approx(float(expected[i, candidate]), abs=1e-3)
            assert found.rank == 1 + int((expected[i] > expected[i, candidate]).sum())
            assert found.decoded_token == tokenizer.decode([candidate], skip_special_tokens=False)
    total = sum(entry[token].logprob for token, entry in zip(tokens, output.outputs[0].logprobs, strict=True))
    assert output.outputs[0].cumulative_logprob == pytest.approx(total)


def test_penalties_and_biases_change_what_is_likeliest(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = some_prompt(10)
    plain = run(engine, [prompt], GREEDY)[0].outputs[0].token_ids
    wanted = run(engine, [prompt], SamplingParams(temperature=0, max_tokens=3, logit_bias={77: 100}))[0]
    assert wanted.outputs[0].token_ids == [77, 77, 77]
    no_repeats = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, repetition_penalty=1e6)
    fresh = run(engine, [prompt], no_repeats)[0].outputs[0].token_ids
    assert fresh[0] != plain[0] or plain[0] not in prompt
    assert len(set(fresh) | set(prompt)) == len(fresh) + len(set(prompt))
    # Only the adjusted row changes.
    both = run(engine, [prompt, prompt], [GREEDY, no_repeats])
    assert [output.outputs[0].token_ids for output in both] == [plain, fresh]


def test_logprobs_are_of_the_raw_logits(make_engine: MakeEngine) -> None:
    biased = SamplingParams(temperature=0, max_tokens=1, logprobs=1, logit_bias={77: 100})
    plain = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
    outputs = run(make_engine(), [some_prompt(5)] * 2, [biased, plain])
    (entry,), (expected,) = (output.outputs[0].logprobs or [] for output in outputs)
    (best,) = expected
    assert entry[77].rank > 1
    assert entry[best] == expected[best]


# ---- where an output ends ----


def first_new_token(tokens: list[int]) -> int:
    """An index from 3 on, of a token that has not come before."""
    return next(i for i in range(3, len(tokens)) if tokens[i] not in tokens[:i])


def test_stop_tokens_end_it_but_not_before_min_tokens(make_engine: MakeEngine) -> None:
    engine = make_engine()
    prompt = some_prompt(12)
    tokens = run(engine, [prompt], GREEDY)[0].outputs[0].token_ids
    at = first_new_token(tokens)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[tokens[at]])
    sample = run(engine, [prompt], params)[0].outputs[0]
    assert (sample.token_ids, sample.finish_reason, sample.stop_reason) == (tokens[: at + 1], "stop", tokens[at])
    params.min_tokens = at + 1
    sample = run(engine, [prompt], params)[0].outputs[0]
    assert sample.token_ids[:at] == tokens[:at]
    assert tokens[at] not in sample.token_ids[: at + 1]


def test_end_of_sequence_stops_unless_ignored(make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    engine = make_engine()
    bias = {EOS: 100.0}
    ended, ignored, shown = run(
        engine,
        [some_prompt(4)] * 3,
        [
            SamplingParams(temperature=0, max_tokens=5, logit_bias=bias, min_tokens=2),
            SamplingParams(temperature=0, max_tokens=5, logit_bias=bias, ignore_eos=True),
            SamplingParams(temperature=0, logit_bias=bias, include_stop_str_in_output=True, skip_special_tokens=False),
        ],
    )
    sample = ended.outputs[0]
    assert len(sample.token_ids) == 3
    assert (sample.token_ids[-1], sample.finish_reason, sample.stop_reason) == (EOS, "stop", None)
    assert sample.text == tokenizer.decode(sample.token_ids[:-1])
    assert ignored.outputs[0].token_ids == [EOS] * 5
    assert ignored.outputs[0].finish_reason == "length"
    assert shown.outputs[0].text == "<eos>"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_cut_the_text(make_engine: MakeEngine, tokenizer: Tokenizer, stream: bool) -> None:
    engine = make_engine()
    prompt = some_prompt(12)
    plain = run(engine, [prompt], GREEDY)[0].outputs[0]
    assert plain.text == tokenizer.decode(plain.token_ids)
    stop = plain.text[len(plain.text) // 2 :][:3]
    at = plain.text.index(stop)
    for include in (False, True):
        params = SamplingParams(
            temperature=0, max_tokens=24, ignore_eos=True, stop=[stop, "zzz"], include_stop_str_in_output=include
        )
        engine.add_request("0", prompt, params, stream=stream)
        outputs = list(drain(engine))
        sample = outputs[-1].outputs[0]
        assert sample.text == plain.text[: at + len(stop) if include else at]
        assert (sample.finish_reason, sample.stop_reason) == ("stop", stop)
        assert sample.token_ids == plain.token_ids[: len(sample.token_ids)]
        assert len(outputs) == (len(sample.token_ids) if stream else 1)
        assert all(sample.text.startswith(output.outputs[0].text) for output in outputs)


def test_max_tokens_none_fills_the_context(make_engine: MakeEngine) -> None:
    output = run(
        make_engine(max_model_len=50),
        [some_prompt(20)],
        SamplingParams(temperature=0, max_tokens=None, ignore_eos=True),
    )[0]
    assert len(output.outputs[0].token_ids) == 30
    assert output.outputs[0].finish_reason == "length"


def test_a_stream_shows_every_step(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("0", some_prompt(5), GREEDY, prompt="the text", stream=True)
    outputs = list(drain(engine))
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 25))
    assert [output.finished for output in outputs] == [False] * 23 + [True]
    assert outputs[-1].outputs[0].text == run(engine, [some_prompt(5)], GREEDY)[0].outputs[0].text
    assert outputs[0].prompt == "the text"


def test_without_a_tokenizer_there_is_no_text(make_engine: MakeEngine) -> None:
    engine = make_engine(with_tokenizer=False)
    output = run(engine, [some_prompt(5)], GREEDY)[0].outputs[0]
    assert (output.text, len(output.token_ids)) == ("", 24)
    with pytest.raises(ValueError, match="stop: expected no stop strings, since the engine has no tokenizer"):
        engine.add_request("0", [1], SamplingParams(stop="x"))


# ---- seeds and samples ----


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int4"])
def test_samples_are_what_requests_with_derived_seeds_would_draw(make_engine: MakeEngine, kv_cache_dtype: str) -> None:
    engine = make_engine(max_num_seqs=3, kv_cache_dtype=kv_cache_dtype)
    prompt = some_prompt(21)
    params: dict[str, Any] = {"temperature": 1.0, "max_tokens": 20, "ignore_eos": True, "logprobs": 0}
    together = run(engine, [prompt], SamplingParams(n=5, seed=40, **params))[0]  # two of them wait for room
    alone = run(engine, [prompt] * 5, [SamplingParams(seed=40 + i, **params) for i in range(5)])
    assert [sample.token_ids for sample in together.outputs] == [output.outputs[0].token_ids for output in alone]
    assert [sample.logprobs for sample in together.outputs] == [output.outputs[0].logprobs for output in alone]
    assert len({tuple(sample.token_ids) for sample in together.outputs}) == 5
    assert [sample.index for sample in together.outputs] == list(range(5))


def test_seeds_of_their_own_do_not_depend_on_order(make_engine: MakeEngine) -> None:
    prompts = [some_prompt(5, seed) for seed in range(6)] + [some_prompt(5, 0)]
    params = SamplingParams(max_tokens=10, ignore_eos=True)

    def tokens(order: list[int], **config: Any) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in run(make_engine(**config), prompts, params, order)]

    forward = tokens([0, 1, 2, 3, 4, 5, 6])
    assert tokens([5, 0, 3, 6, 1, 4, 2]) == forward
    assert forward[0] != forward[6], "equal prompts draw differently"
    assert tokens([0, 1, 2, 3, 4, 5, 6], seed=1) != forward


def test_whole_numbers_will_do(make_engine: MakeEngine) -> None:
    whole = SamplingParams(temperature=1, top_p=1, min_p=0, presence_penalty=1, logit_bias={5: 1}, seed=3, max_tokens=4)
    exact = SamplingParams(temperature=1.0, presence_penalty=1.0, logit_bias={5: 1.0}, seed=3, max_tokens=4)
    outputs = run(make_engine(), [[1, 2]] * 2, [whole, exact])
    assert outputs[0].outputs == outputs[1].outputs


@pytest.mark.parametrize("seed", [None, -1, 2**63, 2**64 - 1, -(2**63)])
def test_engine_seeds_of_64_bits_are_taken(make_engine: MakeEngine, seed: int | None) -> None:
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    first, again = (run(make_engine(seed=seed), [[1, 2]] * 2, params) for _ in range(2))
    assert first[0].outputs == again[0].outputs
    assert first[0].outputs != first[1].outputs
    assert (first[0].outputs == run(make_engine(), [[1, 2]], params)[0].outputs) == (seed is None)


def test_a_request_seed_of_64_bits_is_taken_modulo_2_to_64(make_engine: MakeEngine) -> None:
    large, wrapped = (SamplingParams(n=3, max_tokens=6, seed=seed) for seed in (2**64 - 2, -2))
    outputs = run(make_engine(), [[1, 2]] * 2, [large, wrapped])
    assert outputs[0].outputs == outputs[1].outputs


def test_each_sample_may_end_by_itself(make_engine: MakeEngine) -> None:
    engine = make_engine()
    output = run(engine, [some_prompt(9)], SamplingParams(n=8, seed=0, max_tokens=40, stop=["a", "e", "t"]))[0]
    assert len({len(sample.token_ids) for sample in output.outputs}) > 1
    assert output.metrics.num_output_tokens == sum(len(sample.token_ids) for sample in output.outputs)
    assert output.finished
    once = run(engine, [some_prompt(9)], SamplingParams(n=3, seed=0, max_tokens=1))[0]
    assert [len(sample.token_ids) for sample in once.outputs] == [1, 1, 1]


# ---- what may be drawn ----


def test_only_allowed_tokens_are_drawn(make_engine: MakeEngine) -> None:
    allowed = [5, 77, 120]
    some = {"max_tokens": 12, "ignore_eos": True, "allowed_token_ids": allowed}
    greedy, drawn, plain = run(
        make_engine(),
        [some_prompt(9)] * 3,
        [
            SamplingParams(temperature=0, logprobs=1, **some),
            SamplingParams(n=4, seed=1, temperature=3.0, repetition_penalty=1.5, **some),
            GREEDY,
        ],
    )
    assert set(greedy.outputs[0].token_ids) <= set(allowed)
    assert {token for sample in drawn.outputs for token in sample.token_ids} == set(allowed)
    assert plain.outputs == run(make_engine(), [some_prompt(9)], GREEDY)[0].outputs
    assert greedy.outputs[0].logprobs is not None
    rank = greedy.outputs[0].logprobs[0][greedy.outputs[0].token_ids[0]].rank
    assert rank > 1, "log-probabilities are of the raw logits"


def test_bad_words_are_not_completed(make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    engine, prompt = make_engine(), some_prompt(12)
    plain = run(engine, [prompt], GREEDY)[0].outputs[0].token_ids
    for length in (1, 2):
        at = next(
            i for i in range(24) if tokenizer.encode(tokenizer.decode(plain[i : i + length])) == plain[i : i + length]
        )
        ids = plain[at : at + length]
        word = tokenizer.decode(ids)
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, bad_words=[word])
        changed = run(engine, [prompt], params)[0].outputs[0].token_ids
        assert changed[: at + length - 1] == plain[: at + length - 1]
        assert all(changed[i : i + length] != ids for i in range(len(changed)))


def test_a_bad_word_is_one_after_a_space_too(make_engine: MakeEngine, tokenizer: Tokenizer) -> None:
    inside, after_space = tokenizer.encode("the"), tokenizer.encode(" the")
    assert len(inside) == len(after_space) == 1, "this test needs another word"
    for token in (*inside, *after_space):
        params = [
            SamplingParams(temperature=0, max_tokens=1, logit_bias={token: 100}, bad_words=words)
            for words in ([], ["the"])
        ]
        outputs = run(make_engine(), [some_prompt(5)] * 2, params)
        assert [output.outputs[0].token_ids == [token] for output in outputs] == [True, False]


def test_where_no_token_may_be_drawn_the_request_fails_alone(make_engine: MakeEngine) -> None:
    nothing = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=[7], allowed_token_ids=[7])
    outputs = run(make_engine(), [[5, 6]] * 2, [nothing, GREEDY])
    assert "leave no token to draw" in (outputs[0].error or "")
    assert outputs[1].error is None


def test_minus_one_logprobs_are_all(make_engine: MakeEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1)
    output = run(make_engine(), [[5, 6]], params)[0]
    assert output.outputs[0].logprobs is not None
    assert output.prompt_logprobs is not None
    assert len(output.outputs[0].logprobs[0]) == len(output.prompt_logprobs[1] or ()) == 300


def test_a_prompt_may_be_truncated_to_its_end(make_engine: MakeEngine) -> None:
    engine, prompt = make_engine(max_model_len=64), some_prompt(100)
    for keep, kept in ((10, 10), (-1, 63)):
        params = SamplingParams(temperature=0, max_tokens=1, truncate_prompt_tokens=keep)
        output = run(engine, [prompt], params)[0]
        assert output.prompt_token_ids == prompt[-kept:]
        assert output.outputs == run(engine, [prompt[-kept:]], params)[0].outputs
    long = SamplingParams(temperature=0, max_tokens=1, truncate_prompt_tokens=500)
    assert len(run(engine, [prompt[:20]], long)[0].prompt_token_ids) == 20


# ---- streams ----


def test_deltas_add_up_to_the_whole(make_engine: MakeEngine) -> None:
    engine, prompt = make_engine(), some_prompt(30)
    wanted: dict[str, Any] = {"n": 2, "seed": 3, "max_tokens": 30, "logprobs": 1, "prompt_logprobs": 1, "stop": ["e"]}
    whole = run(engine, [prompt], SamplingParams(**wanted))[0]
    delta = SamplingParams(**wanted, output_kind=RequestOutputKind.DELTA)
    assert run(engine, [prompt], delta)[0].outputs == whole.outputs, "without a stream there is one output"
    engine.add_request("0", prompt, delta, stream=True)
    outputs = list(drain(engine))
    assert len(outputs) > 2
    assert all(len(sample.token_ids) <= 1 for output in outputs for sample in output.outputs)
    assert [output.prompt_logprobs is None for output in outputs] == [False] + [True] * (len(outputs) - 1)
    total = outputs[0]
    for output in outputs[1:]:
        total.add(output)
    assert (total.outputs, total.prompt_logprobs, total.finished) == (whole.outputs, whole.prompt_logprobs, True)


def test_a_stream_of_the_final_output_only_has_one(make_engine: MakeEngine) -> None:
    engine = make_engine()
    params = SamplingParams(temperature=0, max_tokens=5, output_kind=RequestOutputKind.FINAL_ONLY)
    engine.add_request("0", [5, 6], params, stream=True)
    (output,) = drain(engine)
    assert output.finished


# ---- what goes wrong ----


def test_what_can_never_run_is_refused_with_the_numbers(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=4)
    assert engine.max_model_len == 64
    with pytest.raises(ValueError, match="64 tokens and one of output do not fit max_model_len = 64 \\(4 KV blocks"):
        engine.add_request("0", [1] * 64, GREEDY)
    with pytest.raises(ValueError, match="prompt: expected at least one token"):
        engine.add_request("0", [], GREEDY)
    for name, prompt, params in (
        ("prompt", [1, 9999], GREEDY),
        ("stop_token_ids", [1], SamplingParams(stop_token_ids=[9999])),
        ("logit_bias", [1], SamplingParams(logit_bias={9999: 1})),
    ):
        with pytest.raises(ValueError, match=f"{name}: token id 9999 is not in the vocabulary of 300"):
            engine.add_request("0", prompt, params)
    engine.add_request("0", [1], GREEDY)
    with pytest.raises(ValueError, match="request_id: '0' is in use"):
        engine.add_request("0", [1], GREEDY)
    list(drain(engine))
    with pytest.raises(
        ValueError, match="max_model_len: 512 tokens need 32 KV blocks of 16 tokens, but the pool has 4"
    ):
        make_engine(num_kv_blocks=4, max_model_len=512)
    with pytest.raises(ValueError, match="max_model_len: expected at most the model's context of 512, got 513"):
        make_engine(max_model_len=513)


def test_the_pool_takes_no_more_memory_than_sequences_can_use(make_engine: MakeEngine) -> None:
    assert make_engine(num_kv_blocks=None, max_num_seqs=3, max_model_len=100).num_kv_blocks == 3 * 7


def test_quantised_weights_go_with_a_float16_cache(decoder: Decoder, int8_decoder: Decoder) -> None:
    assert kv_layout(decoder, EngineConfig()).dtype == torch.float32
    assert kv_layout(int8_decoder, EngineConfig()).dtype == torch.float16
    assert kv_layout(int8_decoder, EngineConfig(kv_cache_dtype="float32")).dtype == torch.float32


def test_an_fp8_cache_is_refused_on_the_cpu(make_engine: MakeEngine) -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype: 'fp8' runs on GPUs only"):
        make_engine(kv_cache_dtype="fp8")


def test_an_aborted_request_is_gone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for i in range(4):
        engine.add_request(str(i), some_prompt(20, i), SamplingParams(n=2, seed=i, max_tokens=30, ignore_eos=True))
    for _ in range(5):
        assert engine.step() == []
    engine.abort("1")
    engine.abort("3")
    engine.abort("no such request")
    engine.check_integrity()
    assert engine.num_unfinished() == 2
    assert sorted(output.request_id for output in drain(engine)) == ["0", "2"]
    engine.add_request("4", [1], GREEDY)
    engine.abort("4")
    assert not engine.has_unfinished()


def sick(decoder: Decoder) -> Decoder:
    """A decoder whose logits are no numbers from token 13 on."""
    assert isinstance(decoder.embedding, DenseLinear)
    table = decoder.embedding.weight.clone()
    table[0, :, 13] = math.nan
    changed = copy(decoder)
    changed.embedding = DenseLinear(table, decoder.embedding.width)
    return changed


def test_a_request_whose_logits_are_no_numbers_fails_alone(make_engine: MakeEngine, decoder: Decoder) -> None:
    prompts = [[5, 6], [7, 13], [8, 9]]
    bad = SamplingParams(temperature=1.0, seed=1, n=2, max_tokens=5)
    good = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logit_bias={13: -100})
    outputs = run(make_engine(sick(decoder)), prompts, [good, bad, good])
    assert [output.error for output in outputs] == [None, "ArithmeticError: the model's logits are not finite", None]
    assert [sample.finish_reason for sample in outputs[1].outputs] == ["error", "error"]
    healthy = run(make_engine(), prompts, good)
    assert [outputs[i].outputs for i in (0, 2)] == [healthy[i].outputs for i in (0, 2)]


def test_a_failing_sample_takes_along_those_that_wait(make_engine: MakeEngine, decoder: Decoder) -> None:
    engine = make_engine(sick(decoder), max_num_seqs=2)
    params = SamplingParams(temperature=5.0, seed=1, n=4, max_tokens=500, ignore_eos=True)
    output = run(engine, [[7, 8]], params)[0]
    assert output.error is not None
    assert any(sample.token_ids[-1:] == [13] for sample in output.outputs)
    assert {sample.finish_reason for sample in output.outputs} == {"error"}


def test_a_request_whose_text_cannot_be_decoded_fails_alone(
    make_engine: MakeEngine, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_stream, add = Tokenizer.text_stream, TextStream.add
    broken: list[TextStream] = []

    def of_which_one_kind_breaks(self: Tokenizer, skip_special_tokens: bool = True, **after: Any) -> TextStream:
        stream = text_stream(self, skip_special_tokens, **after)
        broken.extend([] if skip_special_tokens else [stream])
        return stream

    def add_or_break(self: TextStream, ids: Any, *, last: bool = False) -> str:
        if any(self is stream for stream in broken):
            raise UnicodeError("broken")
        return add(self, ids, last=last)

    monkeypatch.setattr(Tokenizer, "text_stream", of_which_one_kind_breaks)
    monkeypatch.setattr(TextStream, "add", add_or_break)
    at_each_token = SamplingParams(temperature=0, max_tokens=5, stop="x", skip_special_tokens=False)
    at_the_end = SamplingParams(temperature=0, max_tokens=5, skip_special_tokens=False)
    outputs = run(make_engine(), [[5, 6]] * 3, [GREEDY, at_each_token, at_the_end])
    assert [output.error for output in outputs] == [None, "UnicodeError: broken", "UnicodeError: broken"]
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "error"]


def test_an_interrupted_step_leaves_an_engine_as_new(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    expected = run(engine, [some_prompt(40)], GREEDY)[0].outputs
    for i in range(3):
        engine.add_request(str(i), some_prompt(40), GREEDY)
    engine.step()

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert not engine.has_unfinished()
    engine.check_integrity()
    assert run(engine, [some_prompt(40)], GREEDY)[0].outputs == expected


# ---- metrics ----


def test_metrics_count_what_happened(make_engine: MakeEngine) -> None:
    engine = make_engine(num_kv_blocks=6, max_num_batched_tokens=32, max_num_seqs=8, predict_lengths=False)
    prompts = [some_prompt(17, i) for i in range(4)]
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    outputs = run(engine, prompts, params)
    summary = engine.metrics.summary()
    assert (summary.requests, summary.failed_requests) == (4, 0)
    assert (summary.prompt_tokens, summary.output_tokens) == (4 * 17, 4 * 50)
    assert summary.preemptions == sum(output.metrics.num_preemptions for output in outputs) > 0
    assert 0 < summary.peak_kv_blocks <= summary.kv_blocks == 6
    assert 1 <= summary.batch_occupancy <= summary.peak_batch <= 8
    assert summary.schedule_time + summary.run_time + summary.sample_time <= summary.wall_time
    assert 0 <= summary.ttft_p50 <= summary.ttft_p99 <= summary.e2e_p99
    for output in outputs:
        metrics = output.metrics
        assert metrics.num_output_tokens == 50
        assert metrics.queue_time is not None
        assert metrics.prefill_time is not None
        assert metrics.decode_time is not None
        assert metrics.e2e_time == pytest.approx(metrics.queue_time + metrics.prefill_time + metrics.decode_time)
    engine.metrics = EngineMetrics(engine.num_kv_blocks)
    run(engine, prompts[:1], params)
    assert engine.metrics.summary().requests == 1


def test_metrics_time_every_token_but_the_first_of_each_sample(make_engine: MakeEngine) -> None:
    """Also of those that are preempted, and of samples that found no room when they were forked."""
    engine = make_engine(num_kv_blocks=6, max_num_batched_tokens=32, max_num_seqs=8, predict_lengths=False)
    params = [
        SamplingParams(temperature=1, seed=i, max_tokens=30 + i, ignore_eos=i > 0, n=1 + i % 3, stop_token_ids=[])
        for i in range(6)
    ]
    outputs = run(engine, [some_prompt(17, i) for i in range(6)], params)
    metrics = engine.metrics
    assert metrics.preemptions > 0
    assert metrics.inter_token.count == sum(
        output.metrics.num_output_tokens - len(output.outputs) for output in outputs
    )
    decode_times = sum((output.metrics.decode_time or 0) * len(output.outputs) for output in outputs)
    assert 0 < metrics.inter_token.total <= decode_times
    single = make_engine(num_kv_blocks=6, max_num_batched_tokens=32, max_num_seqs=8, predict_lengths=False)
    outputs = run(single, [some_prompt(17, i) for i in range(4)], params[3])
    decode_times = sum(output.metrics.decode_time or 0 for output in outputs)
    assert single.metrics.preemptions > 0
    assert 0.5 * decode_times < single.metrics.inter_token.total <= decode_times


def test_metrics_tell_prompts_steps_and_why_requests_ended(make_engine: MakeEngine) -> None:
    engine = make_engine(max_model_len=100)
    prompt = some_prompt(40)
    run(engine, [prompt, prompt], [SamplingParams(temperature=0, ignore_eos=True, max_tokens=m) for m in (7, None)])
    (output,) = run(engine, [some_prompt(30)], SamplingParams(temperature=0, ignore_eos=True, n=2, max_tokens=3))
    first = output.outputs[0].token_ids[0]
    run(engine, [some_prompt(30)], SamplingParams(temperature=0, max_tokens=9, stop_token_ids=[first]))
    engine.add_request(
        "gone", prompt, SamplingParams(max_tokens=50, ignore_eos=True), standing=Standing(priority=BACKGROUND)
    )
    engine.step()
    assert (engine.num_running, engine.num_waiting, engine.num_kv_blocks_used) == (1, 0, 3)
    engine.abort("gone")
    engine.abort("gone")
    assert (engine.num_running, engine.num_waiting, engine.num_kv_blocks_used) == (0, 0, 0)
    metrics = engine.metrics
    assert metrics.finish_reasons == {"length": 3, "stop": 1, "abort": 1}
    assert (metrics.prefilled_tokens, metrics.prefilled_cached_tokens) == (40 * 3 + 30 * 2, 32 + 39 + 29)
    assert (metrics.ttft.count, metrics.interactive_ttft.count, metrics.e2e.count) == (5, 4, 4)
    assert (metrics.step_size.count, metrics.step_size.total) == (metrics.steps, metrics.step_tokens)
    assert [times for _, times in metrics.max_tokens.counts()] == [1, 1, 1, 1]
    assert (metrics.max_tokens.total, metrics.samples.total) == (7 + 60 + 3 + 9, 5)
    assert metrics.inference_time.total == pytest.approx(metrics.prefill_time.total + metrics.decode_time.total)


def test_a_prompt_seen_before_is_found_in_the_cache(make_engine: MakeEngine) -> None:
    for caching, expected in ((True, 44), (False, 0)):
        engine = make_engine(enable_prefix_caching=caching)
        first, again = (run(engine, [some_prompt(45)], GREEDY)[0] for _ in range(2))
        assert (first.num_cached_tokens, again.num_cached_tokens) == (0, expected)
        assert first.outputs == again.outputs
        assert engine.metrics.cached_tokens == expected


@pytest.mark.parametrize("policy", ["static(batch_size=3)", "dynamic(max_batch=2)", "micro(micro_batch=2)"])
def test_policies_give_the_same_answers(make_engine: MakeEngine, policy: str) -> None:
    prompts = [some_prompt(10 + i, i) for i in range(10)]
    expected = run(make_engine(), prompts, GREEDY)
    found = run(make_engine(policy=policy, max_num_seqs=4), prompts, GREEDY)
    assert [output.outputs for output in found] == [output.outputs for output in expected]


# ---- memory ----


@pytest.mark.parametrize("kwargs", [{}, {"n": 3, "seed": 1, "temperature": 1.0, "logprobs": 1, "stop": "zzz"}])
def test_an_engine_is_freed_with_the_last_reference_to_it(
    decoder: Decoder, tokenizer: Tokenizer, kwargs: dict[str, Any]
) -> None:
    """Its KV pool too, and not when Python happens to look for cycles: the next model needs the room."""
    gc.disable()
    try:
        engine = Engine(decoder, tokenizer, EngineConfig(num_kv_blocks=64))
        run(engine, [some_prompt(20)], SamplingParams(**{"max_tokens": 8, "temperature": 0, **kwargs}))
        gone = weakref.ref(engine), weakref.ref(engine._kv_cache)
        del engine
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_a_request_that_has_ended_is_freed_at_once(make_engine: MakeEngine) -> None:
    """Without the garbage collector, whose runs hold up all threads."""
    engine = make_engine()
    gc.collect()
    gc.disable()
    try:
        for name in ("done", "aborted"):
            engine.add_request(name, [5, 6], SamplingParams(n=2, max_tokens=3, ignore_eos=True))
            engine.step()
            if name == "aborted":
                engine.abort(name)
            list(drain(engine))
        engine.add_request("next", [7], SamplingParams(max_tokens=1))  # a batch is kept until the next one
        list(drain(engine))
        alive = [each.request_id for each in gc.get_objects() if type(each) is Request]
        assert not {"done", "aborted"} & {*alive}
    finally:
        gc.enable()


def test_users_are_served_in_turn_and_by_deadline(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)
    params = SamplingParams(temperature=0, max_tokens=2)
    asked = [("a", None), ("a", None), ("a", 0.0), ("b", None), ("b", 1.0)]
    for i, (user, target) in enumerate(asked):
        engine.add_request(str(i), [1, 2, 3], params, standing=Standing(user=user, ttft_target=target))
    assert [output.request_id for output in drain(engine)] == ["2", "4", "0", "3", "1"]


def test_users_are_served_by_the_weights_of_the_settings(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1, user_weights={"three": 3.0})
    for i in range(24):
        user = "three" if i % 2 else "one"
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        engine.add_request(f"{user} {i}", [1, 2, 3], params, standing=Standing(user=user))
    first = [output.request_id.split()[0] for output in islice(drain(engine), 12)]
    assert (first.count("three"), first.count("one")) == pytest.approx((9, 3), abs=1)
    assert len(list(drain(engine))) == 12


def test_a_full_queue_refuses_all_but_background_work(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=2, max_queued=1)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for name in "abc":
        engine.add_request(name, [1, 2, 3], params)
    with pytest.raises(QueueFullError, match="max_queued: 1 requests wait while max_num_seqs = 2 run"):
        engine.add_request("d", [1, 2, 3], params)
    for name in "ef":
        engine.add_request(name, [1, 2, 3], params, standing=Standing(priority=BACKGROUND))
    engine.pin_prefix("pin", [5] * 40)
    engine.abort("a")
    engine.add_request("g", [1, 2, 3], params)
    with pytest.raises(QueueFullError):
        engine.add_request("h", [1, 2, 3], params)
    assert {output.request_id for output in drain(engine)} == {*"bcefg", "pin"}
    for name in "abc":
        engine.add_request(name, [1, 2, 3], params)
    with pytest.raises(QueueFullError):
        engine.add_request("d", [1, 2, 3], params)
    assert len(list(drain(engine))) == 3
