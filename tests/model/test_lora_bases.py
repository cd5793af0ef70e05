"""LoRA adapters over models whose files are quantised or lie otherwise than Hugging Face's: GGUF, GPTQ and
compressed-tensors; chosen by rows and merged, against transformers with weights merged by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model.checkpoints import quantizing as q
from model.checkpoints.test_adapter import pair, save_adapter
from model.checkpoints.test_gguf import CONFIGS_BY_ARCH
from model.checkpoints.test_quantized import CASES, SHAPE
from model.families import CONFIGS, make, reference_logits
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from model.test_lora import PROMPTS, load, make_adapters, run
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pybatch.model import ModelError, load_model


def make_gguf(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    monkeypatch.setitem(CONFIGS, name, CONFIGS_BY_ARCH[name])
    model, arch = make(name), name.partition("/")[0]
    writer = begin(path, arch, model)
    write_tensors(writer, arch, model, Kind.Q8_0)
    finish(writer)
    return model


def check(path: Path, model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """Rows with either of two adapters or none, and each merged."""
    adapters = make_adapters(model, folder, 2)
    loaded = load(path, [each for each, _ in adapters], **options)
    slots, models = [0, -1, 1], [adapters[0][1], model, adapters[1][1]]
    has_states = any(hasattr(layer.mixer, "conv") for layer in loaded.decoder.layers)  # caches here have two of them
    chosen = [0, 2] if has_states else [0, 1, 2]
    found = run(loaded, [PROMPTS[i] for i in chosen], [slots[i] for i in chosen])
    for i, logits in zip(chosen, found, strict=True):
        torch.testing.assert_close(logits, reference_logits(models[i], PROMPTS[i]), rtol=3e-4, atol=3e-4)
    if not model.config.tie_word_embeddings:  # of which a merged adapter may not change one
        merged = load_model(path, adapter=adapters[1][0], skip_tokenizer=True, **options).decoder
        torch.testing.assert_close(
            logits_of(merged, PROMPTS[3]), reference_logits(adapters[1][1], PROMPTS[3]), rtol=3e-4, atol=3e-4
        )


# Turned, fused, by heads, without rope in some layers, and value heads in tiles.
@pytest.mark.parametrize("name", ["llama", "phi3", "gptneox", "falcon/one-norm", "smollm3", "chatglm", "qwen35"])
def test_over_a_gguf_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    check(path, make_gguf(path, name, monkeypatch), tmp_path)


def test_over_the_bits_of_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without adapter has the bits that it has without adapters in memory; what is merged is of 8 bits."""
    path = tmp_path / "model.gguf"
    model = make_gguf(path, "llama", monkeypatch)
    (first, merged), (second, _) = make_adapters(model, tmp_path, 2)
    loaded = load(path, [first, second], quantization="gguf")
    mixed = run(loaded, PROMPTS, [0, -1, 1, 0])
    plain = load_model(path, skip_tokenizer=True, quantization="gguf")
    assert torch.equal(mixed[1], run(plain, [PROMPTS[1]], [-1])[0])
    kept = load_model(path, skip_tokenizer=True, quantization="gguf", adapter=first).decoder
    expected = reference_logits(merged, PROMPTS[0])
    for logits in (mixed[0], run(loaded, [PROMPTS[0]], [0])[0], logits_of(kept, PROMPTS[0])):
        assert torch.cosine_similarity(logits, expected).min() > 0.995
    assert torch.cosine_similarity(run(plain, [PROMPTS[0]], [-1])[0], expected).min() < 0.99


def test_experts_of_a_gguf_file_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    make_gguf(path, "qwen3moe", monkeypatch)
    module = "model.layers.0.mlp.experts.1.up_proj"
    adapter = save_adapter(tmp_path / "adapter", {module: {"A": torch.ones(4, 64), "B": torch.ones(32, 4)}})
    with pytest.raises(ModelError, match=r"changes model.layers.0.mlp.experts.1.up_proj, which a small model has not"):
        load_model(path, adapter=adapter, skip_tokenizer=True)


@pytest.mark.parametrize("case", ["gptq", "gptq-zeros", "w4a16", "w8a8"])
def test_over_a_quantised_directory(case: str, tmp_path: Path) -> None:
    """In the form that it runs in; activations of 8 bits are near."""
    quantize, config, *_ = CASES[case]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    path = q.write(tmp_path / "base", model, quantize, config)
    modules = [f"model.layers.{layer}.{each}" for layer in (0, 1) for each in ("self_attn.q_proj", "mlp.down_proj")]
    changes = {module: pair(model, module) for module in modules}
    adapter = save_adapter(tmp_path / "adapter", changes)
    loaded = load(path, [adapter])
    plain = run(load(path, []), [PROMPTS[1]], [-1])[0]
    mixed = run(loaded, PROMPTS[:2], [0, -1])
    assert torch.equal(mixed[1], plain)
    merged = load_model(path, adapter=adapter, skip_tokenizer=True).decoder
    before = reference_logits(model, PROMPTS[0])
    for module, roles in changes.items():
        model.get_submodule(module).weight.data += 3 * roles["B"] @ roles["A"]
    expected = reference_logits(model, PROMPTS[0])
    for logits in (mixed[0], logits_of(merged, PROMPTS[0])):
        near = torch.cosine_similarity(logits, expected).min()
        assert near > 0.99 > torch.cosine_similarity(logits, before).min()
