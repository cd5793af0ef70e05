"""Qwen3.5 in every precision, and as its checkpoints are shared: beside the parts that see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model.families import make, reference_logits, save, some_ids
from model.paged import logits_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from pybatch.model import load_model
from pybatch.model.config import GatedDeltaConfig

IDS = some_ids(100)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A model, and transformers' logits in float32."""
    model = make("qwen3_5")
    return save(model, tmp_path_factory.mktemp("qwen3_5")), reference_logits(model, IDS)


@pytest.mark.parametrize(
    ("precision", "most"),
    [
        ({"dtype": "float32"}, 1e-4),
        ({"dtype": "float16"}, 0.005),
        ({"dtype": "bfloat16"}, 0.04),  # transformers itself has 0.021
        ({"quantization": "int8"}, 0.1),
        ({"quantization": "int8-weight-only"}, 0.07),
    ],
    ids=str,
)
def test_every_precision_is_near_and_pieces_do_not_show(
    saved: tuple[Path, Tensor], precision: dict[str, Any], most: float
) -> None:
    """The mean error of a logit, in standard deviations of logits."""
    decoder = load_model(saved[0], skip_tokenizer=True, **precision).decoder
    logits = logits_of(decoder, IDS)
    assert float((logits - saved[1]).abs().mean() / saved[1].std()) < most
    assert torch.equal(logits_of(decoder, IDS, [33, 1, 1, 65]), logits)


def test_a_model_that_sees_too_is_run_as_one_of_text(saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    """As published: a config within a config, names with a prefix, a tower of vision and a head for several tokens."""
    text = json.loads((saved[0] / "config.json").read_text())
    text["rope_parameters"] |= {"mrope_section": [1, 1, 2], "mrope_interleaved": True}
    text |= {"attn_output_gate": True, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1}
    outer = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(outer))
    tensors = load_file(saved[0] / "model.safetensors")
    named = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    named |= {"model.visual.patch_embed.proj.weight": torch.ones(4, 4), "mtp.fc.weight": torch.ones(4, 4)}
    save_file(named, tmp_path / "model.safetensors")
    decoder = load_model(tmp_path, skip_tokenizer=True, dtype="float32").decoder
    assert any(isinstance(layer.mixer, GatedDeltaConfig) for layer in decoder.config.layers)
    torch.testing.assert_close(logits_of(decoder, IDS), saved[1], rtol=2e-4, atol=2e-4)


def test_a_gate_that_is_not_there_is_refused(saved: tuple[Path, Tensor], tmp_path: Path) -> None:
    config = json.loads((saved[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_output_gate": False}))
    with pytest.raises(ValueError, match="attn_output_gate: expected true"):
        load_model(tmp_path, skip_tokenizer=True)
