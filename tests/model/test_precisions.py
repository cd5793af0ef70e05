"""Every precision answers as fp32 does, as closely as it can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model.families import make, reference_logits, save, some_ids
from model.paged import logits_of, perplexity
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch.model import LoadedModel, load_model

TEXT = Path(__file__).parents[1] / "data" / "perplexity.txt"


@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
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


@pytest.fixture(scope="module")
def fp32_perplexity(smollm2: LoadedModel) -> float:
    assert smollm2.tokenizer is not None
    ids = smollm2.tokenizer.encode(TEXT.read_text())
    return perplexity(logits_of(smollm2.decoder, ids), ids)


@pytest.mark.parametrize(("quantization", "most"), [("int8-weight-only", 1.01), ("int8", 1.03)])
def test_perplexity_of_int8(
    smollm2: LoadedModel, smollm2_path: Path, fp32_perplexity: float, quantization: str, most: float
) -> None:
    assert smollm2.tokenizer is not None
    ids = smollm2.tokenizer.encode(TEXT.read_text())
    decoder = load_model(smollm2_path, quantization=quantization, skip_tokenizer=True).decoder
    assert perplexity(logits_of(decoder, ids), ids) <= most * fp32_perplexity
