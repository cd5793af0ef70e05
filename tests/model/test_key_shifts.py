"""Keys with large biases in a quantised KV cache: what key_shifts takes out of them, and what it brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model.families import SMALL, make, save, some_ids
from model.paged import INT4, caches_for, logits_of
from transformers import Qwen2Config, Qwen2ForCausalLM

from pybatch.model import Decoder, LayerCache, load_model
from pybatch.model.key_shifts import key_shifts

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def biased(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A random Qwen2 whose key projections have biases of a hundred in slow rotary pairs, as the real ones."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{**SMALL, "rope_theta": 1e6, "initializer_range": 0.1})).eval()
    dim = model.config.hidden_size // model.config.num_attention_heads
    for layer in model.model.layers:
        bias = layer.self_attn.k_proj.bias.data.view(-1, 2, dim // 2)
        bias.normal_()
        bias[:, :, -2:] *= 100
    path = save(model, tmp_path_factory.mktemp("biased"))
    return load_model(path, skip_tokenizer=True, dtype=str(request.param).removeprefix("torch.")).decoder


def shifted(decoder: Decoder, blocks: int, kv: torch.dtype) -> list[LayerCache]:
    return [
        cache._replace(key_divisor=shift.divisor, key_offset=shift.offset)
        for cache, shift in zip(caches_for(decoder, blocks, kv), key_shifts(decoder), strict=True)
    ]


@pytest.mark.parametrize(("kv", "most"), [(torch.int8, 0.02), (INT4, 0.2)], ids=str)
def test_large_biases_do_not_take_the_codes_of_the_rest(biased: Decoder, kv: torch.dtype, most: float) -> None:
    ids = some_ids(120)
    exact = logits_of(biased, ids)
    plain = logits_of(biased, ids, kv=kv)
    caches = shifted(biased, 10, kv)
    found = logits_of(biased, ids, caches=caches)
    error, before = ((each - exact).norm() / exact.norm() for each in (found, plain))
    assert error < most, f"{error} of the logits' size, without shifts {before}"
    assert before > 3 * error
    assert torch.equal(logits_of(biased, ids, [1] * 40 + [50, 30], caches=caches), found)  # decode as prefill


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_beside_sinks_and_under_soft_caps_keys_keep_their_mean(family: str, tmp_path: Path) -> None:
    """There a number that all scores of a query are less by changes the softmax."""
    decoder = load_model(save(make(family), tmp_path), skip_tokenizer=True).decoder
    assert all(offset.eq(0).all() for _, offset in key_shifts(decoder))
    ids = some_ids(120)
    exact, found = logits_of(decoder, ids), logits_of(decoder, ids, caches=shifted(decoder, 10, torch.int8))
    assert (found - exact).norm() < 0.1 * exact.norm()  # another expert may be chosen


def test_divisors_are_powers_of_two_alike_in_a_pair(biased: Decoder) -> None:
    for divisor, offset in key_shifts(biased):
        assert torch.equal(divisor.log2(), divisor.log2().round())
        assert torch.equal(*divisor.chunk(2, 1))
        assert offset.isfinite().all()


def test_shifts_are_the_same_each_time(biased: Decoder) -> None:
    for first, second in zip(key_shifts(biased), key_shifts(biased), strict=True):
        assert all(map(torch.equal, first, second))


def test_keys_that_are_not_finite_are_left_alone(tiny_model: Path) -> None:
    decoder = load_model(tiny_model, skip_tokenizer=True).decoder
    decoder.layers[0].mixer.qkv.norm.weight.fill_(float("nan"))
    for divisor, offset in key_shifts(decoder):
        assert torch.equal(divisor, torch.ones_like(divisor))
        assert torch.equal(offset, torch.zeros_like(offset))
