"""Gemma 4 in every precision, and as it is shared: below a model that sees, with the keys of its makers' config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.runs import run
from model.families import CONFIGS, make, reference_logits, save, some_ids
from model.paged import caches_for, logits_of
from safetensors.torch import load_file, save_file

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.model import ModelError, load_model
from pybatch.model.families.read import config_from_hf
from pybatch.model.key_shifts import key_shifts

CHUNKS = [16, 1, 30, 1, 1, 21]
VARIANTS = [name for name, config in CONFIGS.items() if config.model_type == "gemma4_text"]


@pytest.mark.parametrize("family", VARIANTS)
@pytest.mark.parametrize(
    ("dtype", "quantization", "closeness"),
    [
        ("float16", None, 0.999),
        ("bfloat16", None, 0.97),  # now and then another expert is chosen
        ("float32", "int8-weight-only", 0.97),
        ("bfloat16", "int8", 0.94),
    ],
)
def test_every_precision_answers_as_fp32_does_and_chunks_change_no_bit(
    family: str, dtype: str, quantization: str | None, closeness: float, tmp_path: Path
) -> None:
    model = make(family)
    decoder = load_model(save(model, tmp_path), dtype=dtype, quantization=quantization, skip_tokenizer=True).decoder
    ids = some_ids(70)
    whole = logits_of(decoder, ids)
    assert torch.cosine_similarity(whole, reference_logits(model, ids)).mean() > closeness
    assert torch.equal(logits_of(decoder, ids, CHUNKS), whole)


@pytest.mark.parametrize("family", VARIANTS)
def test_an_8_bit_cache_is_close_where_layers_share_it(family: str, tmp_path: Path) -> None:
    decoder = load_model(save(make(family), tmp_path), skip_tokenizer=True).decoder
    shifts = key_shifts(decoder)
    assert len(shifts) == len(decoder.config.attentions)
    assert len(set(map(id, caches_for(decoder, 10, torch.int8)))) == len(shifts)
    ids = some_ids(120)
    exact, found = logits_of(decoder, ids), logits_of(decoder, ids, kv=torch.int8)
    assert torch.cosine_similarity(found, exact).mean() > 0.98
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64, kv_cache_dtype="int8"))
    (output,) = run(engine, [ids], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 2


def as_shared(directory: Path, changes: dict[str, Any]) -> None:
    """Puts a saved model below one that sees."""
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    fields.pop("architectures")
    own = fields.pop("per_layer_config")
    whole = next(iter(own.values()))
    fields |= {"global_head_dim": whole["head_dim"], "num_global_key_value_heads": whole.get("num_key_value_heads")}
    fields |= changes
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "text_config": fields}
    path.write_text(json.dumps({**outer, "vision_config": {}, "tie_word_embeddings": fields["tie_word_embeddings"]}))
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    save_file({name.replace("model.", "model.language_model.", 1): each for name, each in tensors.items()}, weights)


@pytest.mark.parametrize("family", [name for name in VARIANTS if CONFIGS[name].tie_word_embeddings])
def test_the_language_model_of_one_that_sees_is_read(family: str, tmp_path: Path) -> None:
    model = make(family)
    directory = save(model, tmp_path)
    as_shared(directory, {"use_bidirectional_attention": "vision"})
    loaded = load_model(directory, skip_tokenizer=True)
    ids = some_ids(60)
    torch.testing.assert_close(logits_of(loaded.decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)


def test_weights_are_mapped_from_a_cache(tmp_path: Path) -> None:
    directory, folder = save(make("gemma4-shared"), tmp_path / "model"), tmp_path / "cache"
    first, second = (load_model(directory, skip_tokenizer=True, weights_cache_dir=folder).decoder for _ in range(2))
    ids = some_ids(30)
    assert torch.equal(logits_of(first, ids), logits_of(second, ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention: expected causal attention of texts"),
        ({"num_kv_shared_layers": 5}, "num_kv_shared_layers: expected a layer of each kind before the last 5 of 6"),
        ({"num_kv_shared_layers": 6}, "num_kv_shared_layers: expected a layer of each kind before the last 6 of 6"),
        ({"vocab_size_per_layer_input": 210}, r"vocab_size_per_layer_input: expected at least vocab_size \(211\)"),
        ({"enable_moe_block": True}, "num_experts"),
        ({"per_layer_config": {"0": {"sliding_window": 8}}}, "per_layer_config of layer 0 .*: sliding_window is not"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config_from_hf({**CONFIGS["gemma4-shared"].to_dict(), **changes})
