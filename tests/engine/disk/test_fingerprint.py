"""Engines share blocks only if all that these depend on is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pybatch.engine import EngineConfig
from pybatch.engine.disk import fingerprint as module
from pybatch.engine.disk.fingerprint import fingerprint
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.model import Decoder, load_model


def of(decoder: Decoder, **config: object) -> str:
    return fingerprint(decoder, kv_layout(decoder, EngineConfig(**config)))  # type: ignore[arg-type]


def test_a_model_that_is_loaded_again_has_the_same(decoder: Decoder, model_path: Path) -> None:
    again = load_model(model_path, skip_tokenizer=True, progress=False, max_model_len=100).decoder
    again.config = replace(again.config, name="another")
    assert of(again) == of(decoder)


@pytest.mark.parametrize("quantization", [None, "int8", "int8-weight-only"])
def test_a_single_changed_weight_makes_another(model_path: Path, quantization: str | None) -> None:
    loaded = load_model(model_path, skip_tokenizer=True, progress=False, quantization=quantization).decoder
    before = of(loaded)
    mixer, mlp = loaded.layers[1].mixer, loaded.layers[0].mlp
    assert mlp.gate_up.norm is not None
    for tensor in (mixer.qkv.linear.weight, mlp.gate_up.norm.weight, loaded.embedding.weight):  # type: ignore[attr-defined]
        flat = tensor.view(-1)
        kept = flat[-1].clone()
        flat[-1] = 3 if kept != 3 else 4
        assert of(loaded) != before
        flat[-1] = kept
    assert of(loaded) == before


def test_all_settings_that_blocks_depend_on_make_another(
    decoder: Decoder, int8_decoder: Decoder, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**arguments: str) -> Decoder:
        return load_model(model_path, skip_tokenizer=True, progress=False, **arguments).decoder  # type: ignore[arg-type]

    theta = load()
    theta.rotary = {rope: table.flip(1) for rope, table in theta.rotary.items()}
    other_shape = load()
    other_shape.config = replace(other_shape.config, norm=replace(other_shape.config.norm, eps=1e-3))
    found = [
        of(decoder),
        of(decoder, kv_cache_dtype="int8"),
        of(decoder, kv_cache_dtype="float16"),
        of(decoder, block_size=32),
        of(int8_decoder),
        of(load(quantization="int8-weight-only")),
        of(load(dtype="bfloat16")),
        of(theta),
        of(other_shape),
    ]
    changes: list[tuple[str, Callable[..., object]]] = [
        ("arithmetic", lambda device, dtype: "CPU, other instructions"),
        ("_of_file", lambda path: b"other kernels"),
    ]
    for name, changed in changes:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, changed)
            found.append(of(decoder))
    assert len(set(found)) == len(found)
    assert all(len(each) == 32 for each in found)
    assert of(decoder, num_kv_blocks=64, seed=7) == found[0]
    assert torch.get_num_threads() == 1
