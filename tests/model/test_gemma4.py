"""Gemma 4 in every precision, and as it is shared: below a model that sees, with the keys of its makers' config."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.runs import run
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from model.families import CONFIGS, make, reference_logits, save, some_ids
from model.gguf_writing import finish, write_tensors
from model.paged import caches_for, logits_of
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

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


def written(path: Path, model: PreTrainedModel, kind: Kind) -> Path:
    """As llama.cpp's converter writes it."""
    config = model.config
    layers, full = config.num_hidden_layers, config.layer_types.index("full_attention")
    near = [each == "sliding_attention" for each in config.layer_types]
    whole, base = config.per_layer_config[full], config.to_dict()
    writer = GGUFWriter(path, "gemma4")
    writer.add_name("a small model")
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    own = base["num_key_value_heads"]
    writer.add_head_count_kv([own if each else whole.num_key_value_heads for each in near])
    shared, width = config.num_kv_shared_layers, config.intermediate_size
    if config.use_double_wide_mlp:
        writer.add_feed_forward_length([width * (1 if i < layers - shared else 2) for i in range(layers)])
    else:
        writer.add_feed_forward_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(whole.head_dim)
    writer.add_value_length(whole.head_dim)
    writer.add_key_length_swa(base["head_dim"])
    writer.add_value_length_swa(base["head_dim"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(near)
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(ropes["sliding_attention"]["rope_theta"])
    writer.add_rope_dimension_count(whole.head_dim)
    writer.add_rope_dimension_count_swa(base["head_dim"])
    turning = int(whole.head_dim * ropes["full_attention"]["partial_rotary_factor"] / 2)
    still = whole.head_dim // 2 - turning
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * turning + [1e30] * still, dtype=np.float32))
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    write_tensors(writer, "gemma4", model, kind)
    finish(writer)
    return path


OF_BLOCKS = {  # whose rows are whole blocks
    "gemma4": {"intermediate_size": 96},
    "gemma4-shared": {"intermediate_size": 96, "hidden_size_per_layer_input": 32},
    "gemma4-moe": {"intermediate_size": 96, "moe_intermediate_size": 64},
}


@pytest.mark.parametrize("family", OF_BLOCKS)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_a_gguf_file_equals_the_directory(
    family: str, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(CONFIGS[family])
    for key, value in OF_BLOCKS[family].items():
        setattr(config, key, value)
    monkeypatch.setitem(CONFIGS, family, config)
    model = make(family)
    path = written(tmp_path / "model.gguf", model, kind)
    directory = save(model, tmp_path / "hf")
    ids = some_ids(40)
    from_file, from_directory = (load_model(each, skip_tokenizer=True).decoder for each in (path, directory))
    assert torch.equal(logits_of(from_file, ids), logits_of(from_directory, ids))
    if kind == Kind.Q8_0:
        kept = load_model(path, quantization="gguf", skip_tokenizer=True).decoder
        assert torch.cosine_similarity(logits_of(kept, ids), logits_of(from_file, ids)).mean() > 0.98


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
