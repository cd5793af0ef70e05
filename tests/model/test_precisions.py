"""Every precision answers as fp32 does, as closely as it can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model.families import make, reference_logits, save, some_ids
from model.paged import logits_of
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch.model import load_model, smoothquant


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize(
    ("dtype", "quantization", "kv", "closeness"),
    [
        ("float16", None, None, 0.9999),
        ("bfloat16", None, None, 0.999),
        ("float32", "int8-weight-only", None, 0.998),
        ("float32", "int8", None, 0.995),
        ("bfloat16", "int8", None, 0.995),
        ("float16", "int8-weight-only", None, 0.998),
        ("float32", None, torch.int8, 0.999),
    ],
)
def test_logits_point_the_same_way(
    family: str, dtype: str, quantization: str | None, kv: torch.dtype | None, closeness: float, tmp_path: Path
) -> None:
    model = make(family)
    loaded = load_model(save(model, tmp_path), dtype=dtype, quantization=quantization, skip_tokenizer=True)
    ids = some_ids(50)
    actual = logits_of(loaded.decoder, ids, kv=kv)
    assert actual.dtype == torch.float32
    assert torch.cosine_similarity(actual, reference_logits(model, ids)).mean() > closeness


def test_16_bit_checkpoints_are_kept_as_they_are(tmp_path: Path) -> None:
    save(make("llama3").to(torch.bfloat16), tmp_path)
    loaded = load_model(tmp_path, dtype="float32", skip_tokenizer=True)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.decoder.weight_bytes() < 2.2 * sum(parameter.numel() for parameter in reference.parameters())
    ids = some_ids(50)
    expected = reference_logits(reference, ids)
    torch.testing.assert_close(logits_of(loaded.decoder, ids), expected, rtol=2e-4, atol=2e-4)


def test_large_channels_do_not_spoil_w8a8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels made large in a norm and small in the weights behind it change nothing in exact arithmetic."""
    model = make("llama3")
    with torch.no_grad():
        for layer in model.model.layers:
            for norm, projections in (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            ):
                norm.weight[[3, 30]] *= 100
                for projection in projections:
                    projection.weight[:, [3, 30]] /= 100
    directory, ids = save(model, tmp_path), some_ids(50)
    expected = reference_logits(model, ids)

    def closeness() -> float:
        decoder = load_model(directory, quantization="int8", skip_tokenizer=True).decoder
        return float(torch.cosine_similarity(logits_of(decoder, ids), expected).mean())

    smoothed = closeness()
    monkeypatch.setattr(smoothquant, "STRENGTH", 0.0)
    assert smoothed > 0.95 > closeness() + 0.1


def test_channel_scale() -> None:
    x = torch.ones(4, 100)
    x[2, 7] = -64.0  # 39 times the mean of the largest
    x[:, 9] = 0.0
    scale = smoothquant.channel_scale(x)
    assert scale[7] == 8
    assert scale[9] == 2**-5  # a silent channel's weights are not blown up without end
    assert scale[0] == 0.5 or scale[0] == 1
    assert torch.equal(scale, scale.log2().round().exp2())
    assert torch.equal(smoothquant.channel_scale(torch.zeros(4, 8)), torch.full((8,), 2.0**-5))
