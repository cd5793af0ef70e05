"""Random configs of the families that people use most, in the forms of transformers 4 and 5: its logits, or a refusal
that names a key."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from model.families import LATENT, SMALL, WITHOUT_GROUPS, randomized, reference_logits, some_ids
from model.paged import logits_of
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch.model import ModelError, load_model

ABSENT = object()
FULL, NEAR = "full_attention", "sliding_attention"
LAYERS = 3
LENGTH = 70  # of prompts; contexts before scaling are shorter and longer
TRIES = 6  # of each family here

BOOL = [ABSENT, True, False]
WINDOWS = [ABSENT, None, 24]
KINDS = [ABSENT, ABSENT, *([random.Random(seed).choice([FULL, NEAR]) for _ in range(LAYERS)] for seed in range(3))]
COMMON: dict[str, list[Any]] = {
    "num_key_value_heads": [1, 2, 4],
    "head_dim": [16, 32, 20],
    "tie_word_embeddings": BOOL,
    "hidden_act": [ABSENT, "silu", "gelu_pytorch_tanh"],
    "rms_norm_eps": [ABSENT, 1e-3],
    "attention_bias": BOOL,
    "partial_rotary_factor": [ABSENT] * 6 + [1.0, 0.5],
}
CHOSEN_WINDOWS: dict[str, list[Any]] = {
    "sliding_window": WINDOWS,
    "use_sliding_window": BOOL,
    "max_window_layers": [ABSENT, 0, 1, 2],
    "layer_types": KINDS,
}
GEMMA: dict[str, list[Any]] = {
    "query_pre_attn_scalar": [ABSENT, 24, 100],
    "final_logit_softcapping": [ABSENT, None, 8.0],
    "sliding_window": [16, 40],
    "layer_types": KINDS,
    "hidden_act": [ABSENT, "silu"],
    "hidden_activation": [ABSENT, "gelu_pytorch_tanh"],
}
EXPERTS: dict[str, list[Any]] = {
    "num_experts_per_tok": [1, 3],
    "moe_intermediate_size": [48],
    "norm_topk_prob": BOOL,
}
MULTIPLIERS: dict[str, list[Any]] = {
    "embedding_multiplier": [ABSENT, 3.0],
    "residual_multiplier": [ABSENT, 0.3],
    "attention_multiplier": [0.125, 0.5],
    "logits_scaling": [ABSENT, 4.0],
}
LAYER_NORM: dict[str, list[Any]] = {**COMMON, "rms_norm_eps": [ABSENT]}
FIELDS: dict[str, dict[str, list[Any]]] = {
    "llama": {**COMMON, "mlp_bias": BOOL, "layer_types": [ABSENT, [FULL] * LAYERS]},
    "mistral": {**COMMON, "attention_bias": [ABSENT], "sliding_window": WINDOWS},
    "ministral": {**COMMON, "attention_bias": [ABSENT], "sliding_window": WINDOWS, "layer_types": KINDS},
    "qwen2": {**COMMON, "head_dim": [ABSENT, 32], "attention_bias": [ABSENT], **CHOSEN_WINDOWS},
    "qwen3": {**COMMON, **CHOSEN_WINDOWS},
    "qwen3_moe": {
        **COMMON, **CHOSEN_WINDOWS, **EXPERTS, "layer_types": [ABSENT], "num_experts": [4, 5],
        "decoder_sparse_step": [ABSENT, 2], "mlp_only_layers": [ABSENT, None, [1]],
    },
    "gemma2": {**COMMON, **GEMMA, "attn_logit_softcapping": [ABSENT, None, 5.0]},
    "gemma3_text": {
        **COMMON, **GEMMA, "sliding_window_pattern": [ABSENT, 2], "rope_local_base_freq": [ABSENT, 5000.0],
        "attn_logit_softcapping": [ABSENT, None],
    },
    "phi3": {
        **COMMON, "head_dim": [ABSENT], "attention_bias": [ABSENT], "sliding_window": WINDOWS,
        "partial_rotary_factor": [ABSENT, 1.0, 0.75], "original_max_position_embeddings": [ABSENT, 64],
    },
    "gpt_oss": {
        **COMMON, "hidden_act": [ABSENT], "num_local_experts": [4, 5], "num_experts_per_tok": [2, 4],
        "sliding_window": [24], "layer_types": KINDS, "swiglu_limit": [ABSENT, 0.7],
    },
    "glm4": {**COMMON, "head_dim": [16, 32], "partial_rotary_factor": [ABSENT, 0.25, 1.0]},
    "smollm3": {
        **COMMON, **CHOSEN_WINDOWS, "mlp_bias": BOOL, "no_rope_layers": [ABSENT, None, [0, 1, 1]],
        "no_rope_layer_interval": [ABSENT, 2],
    },
    "granite": {**COMMON, "mlp_bias": BOOL, **MULTIPLIERS},
    "olmo2": COMMON,
    "olmo3": {**COMMON, "sliding_window": [24], "layer_types": KINDS},
    "cohere": {**LAYER_NORM, "head_dim": [ABSENT, 32], "logit_scale": [ABSENT, 0.5], "use_qk_norm": BOOL},
    "cohere2": {
        **LAYER_NORM, "head_dim": [ABSENT, 32], "logit_scale": [ABSENT, 0.5], "sliding_window": [24],
        "layer_types": KINDS, "sliding_window_pattern": [ABSENT, 2],
    },
    "starcoder2": {
        **LAYER_NORM, "head_dim": [ABSENT, 32], "attention_bias": [ABSENT], "sliding_window": WINDOWS, "use_bias": BOOL,
        "hidden_act": [ABSENT, "gelu"], "norm_epsilon": [ABSENT, 1e-3],
    },
    "nemotron": {**LAYER_NORM, "hidden_act": [ABSENT], "mlp_bias": BOOL, "norm_eps": [ABSENT, 1e-3]},
    "falcon": {
        "new_decoder_architecture": BOOL, "multi_query": BOOL, "parallel_attn": BOOL, "bias": BOOL,
        "num_kv_heads": [ABSENT, None, 2], "num_ln_in_parallel_attn": [ABSENT, None, 1, 2],
        "activation": [ABSENT, "gelu_pytorch_tanh"], "tie_word_embeddings": BOOL,
    },
    "deepseek_v3": {
        **EXPERTS, "q_lora_rank": [None, 48], "n_routed_experts": [8], "n_group": [1, 2, 4], "topk_group": [1, 2],
        "routed_scaling_factor": [ABSENT, 1.5], "first_k_dense_replace": [ABSENT, 0, 1], "rope_interleave": BOOL,
        "n_shared_experts": [1, 2], "attention_bias": BOOL, "tie_word_embeddings": BOOL,
    },
}  # fmt: skip
PLAIN = {key: value for key, value in WITHOUT_GROUPS.items() if key != "intermediate_size"}
BASES = {"falcon": PLAIN, "deepseek_v3": {**LATENT, "num_key_value_heads": 6}}  # the others: SMALL
OF_KINDS = ("gemma3_text", "olmo3")  # of layers have rotations of their own


def rotation(draw: random.Random, kind: str, turning: int) -> dict[str, Any]:
    """Of all layers, or of those that see all."""
    original = draw.choice([32, 128])
    scaled: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": {"factor": draw.choice([2.0, 8])},
        "llama3": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": draw.choice([2.0, 4.0]),
            "original_max_position_embeddings": original,
        },
        "yarn": {
            "factor": 4.0, "original_max_position_embeddings": original,
            **draw.choice([{}, {"beta_fast": 16, "beta_slow": 2}, {"attention_factor": 0.8}, {"beta_fast": None}]),
            **draw.choice([{}, {"mscale": 0.7, "mscale_all_dim": 1.2}, {"truncate": False}]),
        },
        "longrope": {
            "short_factor": [1.0 + i / 10 for i in range(turning // 2)],
            "long_factor": [1.0 + i for i in range(turning // 2)],
            **draw.choice([{}, {"factor": 4.0}, {"attention_factor": 1.1}]),
            "original_max_position_embeddings": 128,
        },
    }  # fmt: skip
    name = draw.choice(["default", "longrope"] if kind == "phi3" else list(scaled)[:4])
    if name == "yarn" and "truncate" in scaled[name] and kind in OF_KINDS:
        del scaled[name]["truncate"]  # which transformers looks for beside the kinds
    return {"rope_type": name, **scaled[name]}


def drawn(kind: str, seed: int) -> dict[str, Any]:
    """A config.json."""
    draw = random.Random(f"{kind} {seed}")
    config: dict[str, Any] = {"model_type": kind, **BASES.get(kind, SMALL)}
    for key, values in FIELDS[kind].items():
        if (value := draw.choice(values)) is not ABSENT:
            config[key] = copy.deepcopy(value)
    head_dim = config.get("head_dim", 16)
    turning = int(head_dim * config.get("partial_rotary_factor", 0.5 if kind in ("glm4", "nemotron") else 1.0))
    rope, theta = rotation(draw, kind, turning), draw.choice([1e4, 5e5])
    if kind == "olmo3":
        theta = 5e5  # of layers with windows transformers knows no other where it stands on top
    form = draw.choice(["absent", "4", "5"] if kind in OF_KINDS else ["absent", "4", "4, type", "5"])
    if form.startswith("4"):
        name = "type" if form.endswith("type") else "rope_type"
        scaling = {name: rope.pop("rope_type"), **rope}
        config |= {"rope_theta": theta, "rope_scaling": None if scaling == {name: "default"} else scaling}
    elif form == "5":
        whole = {**rope, "rope_theta": theta}
        near = {"rope_type": "default", "rope_theta": 3e3}
        config["rope_parameters"] = {FULL: whole, NEAR: near} if kind in OF_KINDS else whole
    return config


@pytest.mark.parametrize("kind", FIELDS)
def test_logits_are_those_of_transformers_or_a_key_is_refused(kind: str, tmp_path: Path) -> None:
    ran = 0
    for seed in range(TRIES):
        ran += compare(drawn(kind, seed), tmp_path / str(seed))
    assert ran >= TRIES // 3


def compare(config: dict[str, Any], directory: Path) -> bool:
    """Whether both ran it."""
    torch.manual_seed(0)
    try:
        theirs = AutoConfig.for_model(**copy.deepcopy(config))
        model = randomized(AutoModelForCausalLM.from_config(theirs, attn_implementation="eager"))
        reference_logits(model, some_ids(2))
    except Exception:  # of many kinds, for what transformers' own checks refuse
        return False
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    try:
        loaded = load_model(directory, skip_tokenizer=True)
    except ModelError as refused:
        said = str(refused)
        assert any(key in said for key in config), (config, said)
        return False
    ids = some_ids(LENGTH)[: loaded.decoder.context_length]
    expected, actual = reference_logits(model, ids), logits_of(loaded.decoder, ids)
    torch.testing.assert_close(actual, expected, rtol=5e-4, atol=5e-4, msg=lambda text: f"{config}\n{text}")
    return True
