"""gpt-oss as its makers share it: experts in MXFP4 blocks, gates and ups by turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model.checkpoints import quantizing
from model.families import CONFIGS, SMALL, YARN_ROPE, make, reference_logits, save, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, PreTrainedModel

from pybatch.model import load_model
from pybatch.model.blocks.moe import MoE
from pybatch.model.families import FAMILIES
from pybatch.model.families.read import config_from_hf
from pybatch.model.layers import GGUFLinear

CHUNKS = [16, 1, 30, 1, 1, 21]
CONFIG = GptOssConfig(  # rows of whole blocks
    **{**SMALL, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1},
    head_dim=16,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=24,
    rope_parameters={**YARN_ROPE, "truncate": False},
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path, Path]:
    """A model, a directory with its experts in MXFP4 as the makers have them, and one with the same as floats."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "gpt_oss", CONFIG)
        model = make("gpt_oss")
    blocks: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:
            rows = parameter.detach().transpose(1, 2)
            found = quantizing.mxfp4(rows.reshape(-1, rows.shape[2]))
            packed, scale = found.tensors["weight_packed"], found.tensors["weight_scale"]
            blocks[f"{name}_blocks"] = packed.view(*rows.shape[:2], -1, 16)
            blocks[f"{name}_scales"] = scale.view(*rows.shape[:2], -1)
            with torch.no_grad():
                parameter.copy_(found.weight.view(rows.shape).transpose(1, 2))
    floats = save(model, tmp_path_factory.mktemp("floats"))
    directory = save(model, tmp_path_factory.mktemp("blocks"))
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if f"{name}_blocks" not in blocks}
    save_file({**kept, **blocks}, directory / "model.safetensors")
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "quantization_config": {"quant_method": "mxfp4"}}))
    return model, directory, floats


def test_experts_run_from_their_own_bits(shared: tuple[PreTrainedModel, Path, Path]) -> None:
    model, directory, _ = shared
    decoder = load_model(directory, skip_tokenizer=True).decoder
    experts = decoder.layers[0].mlp
    assert isinstance(experts, MoE)
    for linear in (experts.gate_up.linear, experts.down):
        assert isinstance(linear, GGUFLinear)
        assert linear.weight.dtype == torch.int8  # a code book's
    ids = some_ids(70)
    whole = logits_of(decoder, ids)
    similarity = torch.cosine_similarity(whole, reference_logits(model, ids))
    assert similarity.median() > 0.9995  # now and then another expert is chosen
    assert torch.equal(logits_of(decoder, ids, CHUNKS), whole)


@pytest.mark.parametrize("quantization", ["int8", "int8-weight-only"])
def test_blocks_are_the_weights_that_floats_are(quantization: str, shared: tuple[PreTrainedModel, Path, Path]) -> None:
    model, *directories = shared
    ids = some_ids(70)
    from_blocks, from_floats = (
        logits_of(load_model(each, quantization=quantization, skip_tokenizer=True).decoder, ids) for each in directories
    )
    assert torch.equal(from_blocks, from_floats)
    assert torch.cosine_similarity(from_floats, reference_logits(model, ids)).mean() > 0.99


def test_a_gguf_file_keeps_its_blocks(tmp_path: Path, shared: tuple[PreTrainedModel, Path, Path]) -> None:
    model, directory, _ = shared
    writer = begin(tmp_path / "model.gguf", "gpt-oss", model)
    write_tensors(writer, "gpt-oss", model, lambda name: Kind.MXFP4 if ".experts." in name else Kind.F32)
    finish(writer)
    decoder = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    ids = some_ids(70)
    assert torch.equal(logits_of(decoder, ids), logits_of(load_model(directory, skip_tokenizer=True).decoder, ids))


def test_the_makers_own_config_is_read() -> None:
    """That of gpt-oss-20b."""
    fields = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200002,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2880,
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 2880,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 24,
        "num_key_value_heads": 8,
        "num_local_experts": 32,
        "output_router_logits": False,
        "pad_token_id": 199999,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 201088,
    }
    config = config_from_hf(fields, {"eos_token_id": [200002, 199999, 200012]})
    assert config.architecture == FAMILIES["gpt_oss"].architecture
    assert [mixer.window for mixer in config.attentions] == [128, 0] * 12
    assert (config.max_position, config.eos_token_ids) == (131072, (200002, 199999, 200012))
    (rope,) = config.ropes
    assert (rope.kind, rope.theta, rope.factor, rope.truncate) == ("yarn", 150000.0, 32.0, False)
