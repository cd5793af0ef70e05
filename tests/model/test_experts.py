"""Mixtures of experts in every precision, and from every layout of their tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model.families import EXPERTS, SMALL, make, reference_logits, save, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Qwen3MoeConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch.model import ModelError, load_model
from pybatch.model.blocks.moe import MoE
from pybatch.model.layers import GGUFLinear

CHUNKS = [16, 1, 30, 1, 1, 21]


@pytest.mark.parametrize("family", ["qwen3-moe", "glm4-moe-groups"])
@pytest.mark.parametrize(
    ("dtype", "quantization", "closeness"),
    [
        ("float16", None, 0.999),
        ("bfloat16", None, 0.98),  # now and then another expert is chosen
        ("float32", "int8-weight-only", 0.98),
        ("float32", "int8", 0.96),
        ("bfloat16", "int8", 0.95),
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


@pytest.mark.parametrize("family", ["qwen3-moe", "mixtral", "glm4-moe-groups"])
def test_experts_in_one_tensor_are_those_in_many(family: str, tmp_path: Path) -> None:
    """As transformers has them in memory, and as it saves them."""
    model = make(family)
    apart = save(model, tmp_path / "apart")
    names = load_file(apart / "model.safetensors")
    assert any(".experts.0." in name for name in names)
    stacked = save(model, tmp_path / "stacked")
    others = {name: tensor for name, tensor in names.items() if ".experts." not in name}
    stacks = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if ".experts." in name}
    save_file({**others, **stacks}, stacked / "model.safetensors")
    ids = some_ids(30)
    expected, actual = (logits_of(load_model(each, skip_tokenizer=True).decoder, ids) for each in (apart, stacked))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_K])
def test_blocks_of_a_gguf_file_are_kept(kind: Kind, tmp_path: Path) -> None:
    model = moe_of_blocks()
    writer = begin(tmp_path / "model.gguf", "qwen3moe", model)
    write_tensors(writer, "qwen3moe", model, kind)
    finish(writer)
    decoder = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    experts = decoder.layers[0].mlp
    assert isinstance(experts, MoE)
    assert isinstance(experts.gate_up.linear, GGUFLinear)
    assert isinstance(experts.down, GGUFLinear)
    ids = some_ids(70)
    whole = logits_of(decoder, ids)
    assert torch.cosine_similarity(whole, reference_logits(model, ids)).mean() > 0.98
    assert torch.equal(logits_of(decoder, ids, CHUNKS), whole)


def moe_of_blocks() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {**SMALL, "hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
    config = Qwen3MoeConfig(
        **shape, num_experts_per_tok=2, moe_intermediate_size=256, num_experts=4, head_dim=64, norm_topk_prob=True
    )
    return AutoModelForCausalLM.from_config(config).eval()


def test_what_no_router_can_do_is_refused(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(**SMALL, **EXPERTS, num_experts=2, head_dim=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="num_experts_per_tok: expected at most 2, got 3"):
        load_model(tmp_path, skip_tokenizer=True)
