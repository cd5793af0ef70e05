"""Rotary tables equal those of transformers, for every way of stretching them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pybatch.model import ModelError
from pybatch.model.fields import Fields
from pybatch.model.rope import RopeConfig, rotary_table

HEAD_DIM = 64
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "partial": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    "yarn-betas": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.5,
        "truncate": False,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 1024,
        "factor": 4.0,
        "short_factor": [1 + i / 40 for i in range(32)],
        "long_factor": [1 + i for i in range(32)],
    },
    "longrope-partial": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 256,
        "short_factor": [1.0] * 16,
        "long_factor": [1 + i / 4 for i in range(16)],
        "partial_rotary_factor": 0.5,
    },
}


def read(config: dict[str, Any]) -> RopeConfig:
    return RopeConfig.from_hf(Fields(config, "config.json"), HEAD_DIM, 2048)


def config_of(rope: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=HEAD_DIM * 2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [700, 2000])
def test_table_equals_that_of_transformers(kind: str, length: int) -> None:
    config = config_of(KINDS[kind])
    rope = read(config.to_dict())
    x = torch.zeros(1, length, HEAD_DIM)
    cos, sin = LlamaRotaryEmbedding(config)(x, torch.arange(length)[None])
    half = rope.rotary_dim // 2
    expected = torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=1)
    assert rope.rotary_dim == (HEAD_DIM // 2 if "partial" in kind else HEAD_DIM)
    torch.testing.assert_close(rotary_table(rope, length), expected, rtol=0, atol=5e-4)


def test_phi3_called_longrope_by_other_names() -> None:
    new = config_of(KINDS["longrope"]).to_dict()
    for name in ("su", "yarn"):
        older = {**new, "rope_parameters": {**new["rope_parameters"], "rope_type": name}}
        assert read({**older, "model_type": "phi3"}) == read(new)
    with pytest.raises(ModelError, match="got 'su'"):  # which transformers does not know for others
        read({**new, "rope_parameters": {**new["rope_parameters"], "rope_type": "su"}})


@pytest.mark.parametrize("factors", [None, [1.0] * 31, [1.0] * 31 + [0.0], [1.0] * 31 + ["2"], 4.0])
def test_factors_that_are_not_one_a_frequency_are_refused(factors: object) -> None:
    with pytest.raises(ModelError, match=r"expected long_factor|long_factor: expected a list of 32 positive numbers"):
        read({"rope_parameters": {**KINDS["longrope"], "long_factor": factors}})


def test_older_configs_mean_the_same() -> None:
    new = config_of(KINDS["llama3"]).to_dict()
    scaling = dict(KINDS["llama3"])
    old = {"max_position_embeddings": 1024, "rope_theta": scaling.pop("rope_theta")}
    old["rope_scaling"] = {**scaling, "type": scaling.pop("rope_type")}
    assert read(json.loads(json.dumps(old))) == read(new)


def test_divisors_of_frequencies_equal_the_llama3_rule() -> None:
    llama3 = read(config_of(KINDS["llama3"]).to_dict())
    plain = RopeConfig(rotary_dim=HEAD_DIM, theta=5e5)
    # Row 1 holds the cosines and sines of the frequencies themselves.
    plain_angle, llama3_angle = (torch.atan2(*rotary_table(r, 2)[1].chunk(2)[::-1]) for r in (plain, llama3))
    divided = RopeConfig(
        rotary_dim=HEAD_DIM, theta=5e5, frequency_divisors=tuple((plain_angle / llama3_angle).tolist())
    )
    torch.testing.assert_close(rotary_table(divided, 300), rotary_table(llama3, 300), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "context"),
    [("default", 1024), ("linear", 4096), ("dynamic", 2048), ("llama3", 1024), ("yarn", 2048), ("longrope", 1024)],
)
def test_context_grows_with_the_stretching(kind: str, context: int) -> None:
    assert read(config_of(KINDS[kind]).to_dict()).context_length(1024) == context


def test_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"rope_type: expected one of default, .*, got 'wobbly'"):
        read({"rope_scaling": {"type": "wobbly"}})
