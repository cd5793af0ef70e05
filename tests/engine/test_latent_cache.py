"""A model with latent attention through the whole engine: the same bits in any company, pieces and order; and what its
cache cannot do is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.runs import run, some_prompt
from model.families import make, save

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.speculative_config import SpeculativeConfig
from pybatch.machine import device as devices
from pybatch.model import Decoder, ModelError, load_model, loader
from pybatch.model.checkpoints.safetensors import SafetensorsCheckpoint
from pybatch.model.config import LatentAttentionConfig
from pybatch.model.lora.layout import layouts

SHARED = some_prompt(40, 99, vocab=200)
PROMPTS = [(SHARED if i % 2 else []) + some_prompt(1 + 9 * i % 90, i, vocab=200) for i in range(12)]
PARAMS = [
    SamplingParams(temperature=0.9 * (i % 2), max_tokens=5 + i % 20, ignore_eos=True, logprobs=1, seed=i, n=1 + i % 3)
    for i in range(12)
]


def bits(outputs: list[RequestOutput]) -> list[Any]:
    assert not any(output.error for output in outputs)
    return [[(each.token_ids, each.logprobs) for each in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("deepseek-v3"), tmp_path_factory.mktemp("deepseek"))


@pytest.fixture(scope="module", params=[("float32", None), ("bfloat16", None), ("auto", "int8")], ids=str)
def decoder(request: pytest.FixtureRequest, path: Path) -> Decoder:
    dtype, quantization = request.param
    return load_model(path, dtype=dtype, quantization=quantization, skip_tokenizer=True).decoder


def test_every_request_has_its_bits_in_any_company(decoder: Decoder) -> None:
    """Alone and uncached, in one batch, in small steps, and where blocks run out."""
    alone = Engine(decoder, None, EngineConfig(num_kv_blocks=64, enable_prefix_caching=False))
    expected = [bits(run(alone, [prompt], params))[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    for config in (
        {"num_kv_blocks": 512},
        {"num_kv_blocks": 512, "max_num_seqs": 5, "max_num_batched_tokens": 13},
        {"num_kv_blocks": 14, "predict_lengths": False},
        {"num_kv_blocks": 14, "predict_lengths": False, "swap_space": 0.01},
        {"num_kv_blocks": 512, "speculative_config": SpeculativeConfig(method="ngram", num_speculative_tokens=3)},
    ):
        engine = Engine(decoder, None, EngineConfig(**config))  # type: ignore[arg-type]
        for _ in range(2):  # the second time from cached prefixes
            assert bits(run(engine, PROMPTS, PARAMS, list(range(12))[::-1])) == expected, config
        engine.check_integrity()


def test_a_block_holds_nothing_but_latents_and_rotated_keys(decoder: Decoder) -> None:
    mixers = decoder.config.attentions
    assert all(isinstance(mixer, LatentAttentionConfig) and mixer.head_dim == 48 == 40 + 8 for mixer in mixers)
    layout = kv_layout(decoder, EngineConfig(kv_cache_dtype="float16"))
    assert layout.block_bytes == len(mixers) * layout.block_size * 48 * 2


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantised_caches_are_refused_by_name(decoder: Decoder, name: Any) -> None:
    with pytest.raises(ValueError, match=f"kv_cache_dtype: '{name}' is not for DeepseekV3ForCausalLM, whose cache"):
        Engine(decoder, None, EngineConfig(kv_cache_dtype=name))


def test_pruning_is_refused_by_name(decoder: Decoder) -> None:
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64))
    with pytest.raises(ValueError, match="the model keeps one latent vector a token for all heads"):
        engine.add_request("0", [5], SamplingParams(kv_policy=StreamingLLM(window=32)))


def test_a_gpu_is_refused_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "find_device", lambda device: torch.device("cuda"))
    assert devices.find_device("cpu").type == "cpu"
    with pytest.raises(ModelError, match="device: expected 'cpu' for DeepseekV3ForCausalLM, whose latent attention"):
        load_model(path, device="cuda", skip_tokenizer=True)


def test_adapters_may_change_what_is_multiplied_as_it_is_stored(path: Path) -> None:
    """All but the heads' own projections, which are no products of their own."""
    decoder = load_model(path, skip_tokenizer=True).decoder
    modules = {
        name for _, layout in layouts(decoder, SafetensorsCheckpoint(path), None, None) for name in layout.modules
    }
    of_attention = {name.rpartition(".")[2] for name in modules if name.startswith("model.layers.1.self_attn.")}
    assert of_attention == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"}
