from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model.families import CONFIGS, make, save

from pybatch.model import load_model
from pybatch.model.unweighted import planned_decoder, random_decoder, read_config

FAMILIES = ["llama", "gemma3", "qwen3_5", "qwen3_moe", "gpt_oss", "mixtral", "phi3", "gpt_neox", "cohere2"]


@pytest.mark.parametrize("name", [name for name in FAMILIES if name in CONFIGS])
@pytest.mark.parametrize("quantization", [None, "int8", "int8-weight-only"])
def test_a_planned_decoder_takes_the_bytes_of_a_loaded_one(name: str, quantization: str | None, tmp_path: Path) -> None:
    path = save(make(name).to(torch.bfloat16), tmp_path)
    loaded = load_model(path, quantization=quantization, skip_tokenizer=True).decoder
    for weights in path.glob("*.safetensors*"):
        weights.unlink()
    config = read_config(path)
    assert planned_decoder(config, torch.float32, quantization).weight_bytes() == loaded.weight_bytes()
    made = random_decoder(config, torch.float32, quantization, torch.device("cpu"), 64)
    assert made.weight_bytes() == loaded.weight_bytes()


def test_a_config_may_be_named_by_its_file_or_come_from_a_gguf_file(tiny_model: Path) -> None:
    assert read_config(tiny_model / "config.json") == read_config(tiny_model)
    assert read_config("smollm2-135m").num_layers == 30


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: expected a directory"):
        read_config(tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["NoSuchModel"]}))
    with pytest.raises(ValueError, match="NoSuchModel"):
        read_config(tmp_path)
