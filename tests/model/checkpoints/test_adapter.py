"""LoRA adapters in peft's directories, merged at load: against transformers with weights merged by torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from model.families import make, reference_logits, save, some_ids
from model.paged import logits_of
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from pybatch.model import ModelError, load_model

IDS = some_ids(40)
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["q_proj"], "bias": "none"}
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.down_proj",
)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1


def pair(model: PreTrainedModel, module: str, rank: int = 4) -> dict[str, Tensor]:
    n, k = model.get_submodule(module).weight.shape
    return {"A": random(rank, k), "B": random(n, rank)}


def save_adapter(directory: Path, modules: Mapping[str, Mapping[str, Tensor]], **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    tensors = {
        f"base_model.model.{module}.lora_{role}" + ("" if "_" in role else ".weight"): tensor.contiguous()
        for module, roles in modules.items()
        for role, tensor in roles.items()
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def change(model: PreTrainedModel, module: str, delta: Tensor) -> None:
    with torch.no_grad():
        model.get_submodule(module).weight.add_(delta)


@pytest.mark.parametrize("name", ["qwen3-biases", "llama3"])
@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 3.0), ({"use_rslora": True}, 6.0), ({"lora_alpha": 2}, 0.5)],
    ids=["alpha", "rslora", "small"],
)
def test_merged_weights_are_those_of_torch(tmp_path: Path, name: str, config: dict[str, Any], scale: float) -> None:
    model = make(name)
    modules = [f"model.layers.{layer}.{each}" for layer in (0, 2) for each in PROJECTIONS] + ["lm_head"]
    changes = {module: pair(model, module) for module in modules}
    path = save(model, tmp_path / "model")
    adapter = save_adapter(tmp_path / "adapter", changes, **config)
    for module, roles in changes.items():
        change(model, module, scale * roles["B"] @ roles["A"])
    decoder = load_model(path, adapter=adapter, skip_tokenizer=True).decoder
    plain = load_model(path, skip_tokenizer=True).decoder
    expected = reference_logits(model, IDS)
    torch.testing.assert_close(logits_of(decoder, IDS), expected, rtol=2e-4, atol=2e-4)
    assert (logits_of(plain, IDS) - expected).abs().max() > 0.05


def test_patterns_tell_a_modules_alpha_and_rank(tmp_path: Path) -> None:
    model = make("llama3")
    first, second = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    changes = {first: pair(model, first, 2), second: pair(model, second)}
    path = save(model, tmp_path / "model")
    patterns = {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {r"layers\.0\..*q_proj": 10}}
    adapter = save_adapter(tmp_path / "adapter", changes, **patterns)
    change(model, first, 5 * changes[first]["B"] @ changes[first]["A"])
    change(model, second, 3 * changes[second]["B"] @ changes[second]["A"])
    decoder = load_model(path, adapter=adapter, skip_tokenizer=True).decoder
    torch.testing.assert_close(logits_of(decoder, IDS), reference_logits(model, IDS), rtol=2e-4, atol=2e-4)


def test_dora_sets_the_norms_of_rows(tmp_path: Path) -> None:
    model = make("qwen2")
    module = "model.layers.1.mlp.up_proj"
    roles = pair(model, module)
    magnitude = 1 + random(model.get_submodule(module).weight.shape[0]).abs()
    path = save(model, tmp_path / "model")
    adapter = save_adapter(tmp_path / "adapter", {module: {**roles, "magnitude_vector": magnitude}}, use_dora=True)
    with torch.no_grad():
        weight = model.get_submodule(module).weight
        merged = weight + 3 * roles["B"] @ roles["A"]
        weight.copy_(magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True))
    decoder = load_model(path, adapter=adapter, skip_tokenizer=True).decoder
    torch.testing.assert_close(logits_of(decoder, IDS), reference_logits(model, IDS), rtol=2e-4, atol=2e-4)


def test_an_untied_embedding_is_changed_too(tmp_path: Path) -> None:
    model = make("llama3")
    n, k = model.get_input_embeddings().weight.shape
    roles = {"embedding_A": random(4, n), "embedding_B": random(k, 4)}
    path = save(model, tmp_path / "model")
    adapter = save_adapter(tmp_path / "adapter", {"model.embed_tokens": roles})
    change(model, "model.embed_tokens", 3 * (roles["embedding_B"] @ roles["embedding_A"]).T)
    decoder = load_model(path, adapter=adapter, skip_tokenizer=True).decoder
    torch.testing.assert_close(logits_of(decoder, IDS), reference_logits(model, IDS), rtol=2e-4, atol=2e-4)


def test_dora_of_an_embedding_is_refused(tmp_path: Path) -> None:
    model = make("llama3")
    n, k = model.get_input_embeddings().weight.shape
    roles = {"embedding_A": random(4, n), "embedding_B": random(k, 4), "magnitude_vector": random(k)}
    adapter = save_adapter(tmp_path / "adapter", {"model.embed_tokens": roles}, use_dora=True)
    with pytest.raises(ModelError, match="use_dora on an embedding is not known here"):
        load_model(save(model, tmp_path / "model"), adapter=adapter, skip_tokenizer=True)


@pytest.mark.parametrize("quantization", ["int8", "int8-weight-only"])
def test_quantised_weights_are_those_of_the_merged_model(tmp_path: Path, quantization: str) -> None:
    model = make("llama3")
    module = "model.layers.0.self_attn.o_proj"
    roles = pair(model, module)
    path = save(model, tmp_path / "model")
    adapter = save_adapter(tmp_path / "adapter", {module: roles})
    merged = load_model(path, adapter=adapter, quantization=quantization, skip_tokenizer=True).decoder
    with torch.no_grad():
        weight = model.get_submodule(module).weight
        weight.copy_((weight.double() + (3 * roles["B"].double()) @ roles["A"].double()).float())
    plain = load_model(save(model, tmp_path / "merged"), quantization=quantization, skip_tokenizer=True).decoder
    assert torch.equal(logits_of(merged, IDS), logits_of(plain, IDS))


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected 'LORA', got 'IA3'"),
        ({"bias": "all"}, "bias = 'all' is not known here"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head'] is not known here"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True is not known here"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4' changes the model too"),
        ({"use_dora": True}, "expected lora_magnitude_vector where use_dora is true"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern: '(': "),
        ({"lora_alpha": "x"}, "lora_alpha: expected a number"),
    ],
)
def test_what_an_adapter_asks_besides_is_refused(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    model = make("llama3")
    adapter = save_adapter(tmp_path / "adapter", {Q: pair(model, Q)}, **config)
    with pytest.raises(ModelError, match=re.escape(said)):
        load_model(save(model, tmp_path / "model"), adapter=adapter, skip_tokenizer=True)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (
            {"model.layers.9.mlp.up_proj": {"A": random(4, 64), "B": random(88, 4)}},
            "changes model.layers.9.mlp.up_proj, which",
        ),
        ({Q: {"A": random(4, 64)}}, f"{Q} has no lora_B"),
        ({Q: {"A": random(4, 64), "B": random(64, 3)}}, f"{Q}: expected [r, K] and [N, r], got [4, 64], [64, 3]"),
        (
            {Q: {"A": random(4, 32), "B": random(64, 4)}},
            f"{Q}: is for a matrix of [64, 32], and model has one of [64, 64]",
        ),
        ({"lm_head": {"A": random(4, 72), "B": random(211, 4)}}, "changes lm_head, whose weights are tied in model"),
    ],
)
def test_an_adapter_for_another_model_is_refused(
    tmp_path: Path, modules: dict[str, dict[str, Tensor]], said: str
) -> None:
    model = make("smollm2" if "lm_head" in modules else "llama3")
    adapter = save_adapter(tmp_path / "adapter", modules)
    with pytest.raises(ModelError, match=re.escape(said)):
        load_model(save(model, tmp_path / "model"), adapter=adapter, skip_tokenizer=True)


def test_a_directory_that_is_no_adapter_is_named(tmp_path: Path) -> None:
    path = save(make("llama3"), tmp_path / "model")
    with pytest.raises(ModelError, match=r"adapter: expected a directory with adapter_config\.json"):
        load_model(path, adapter=tmp_path, skip_tokenizer=True)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"expected adapter_model\.safetensors, found adapter_model\.bin"):
        load_model(path, adapter=tmp_path, skip_tokenizer=True)
