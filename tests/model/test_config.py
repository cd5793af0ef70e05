"""A config.json means what it means to transformers, or is refused by name."""

from __future__ import annotations

import copy
import logging
import re
from typing import Any

import pytest
import torch
import transformers
from model.families import GPT, SMALL
from transformers import AutoConfig, MistralConfig, Qwen2Config

from pybatch.model import ModelError
from pybatch.model.config import ModelConfig, without_unknown_ids
from pybatch.model.families import FAMILIES
from pybatch.model.families.read import config_from_hf
from pybatch.model.rope import NO_ROPE, rotary_table
from pybatch.model.unread_keys import HARMLESS

LLAMA: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SMALL}


def read(**changes: Any) -> ModelConfig:
    """... removes a key."""
    return config_from_hf({k: v for k, v in {**LLAMA, **changes}.items() if v is not ...})


# Configs of other architectures that say so in no key but model_type (and in the names of their tensors).
LIKE_LLAMA = ("arcee", "cwm", "gemma", "glm", "helium", "ministral", "olmo2", "phi3", "qwen2_5_vl")
UNLIKE_LLAMA = (
    "bamba", "cohere", "cohere2", "deepseek_v3", "falcon_h1", "gemma2", "gemma3_text", "gpt_oss", "granite",
    "granitemoe", "llama4_text", "minicpm3", "mixtral", "nemotron", "phi", "qwen3_moe", "smollm3", "stablelm",
    "starcoder2",
)  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in (*LIKE_LLAMA, *UNLIKE_LLAMA) if kind not in FAMILIES])
def test_other_architectures_under_the_class_name_of_llama_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ModelError, match=f"model_type '{kind}', which is not known here; known: llama, mistral"):
        read(model_type=kind)


@pytest.mark.parametrize("kind", UNLIKE_LLAMA)
def test_keys_that_change_the_numbers_are_refused_by_name(kind: str) -> None:
    config = AutoConfig.for_model(kind).to_dict()
    head_dim = config.get("head_dim") or 64
    with pytest.raises(
        ModelError,
        match=r"(\w+ = .* changes what the model computes|hidden_act: |rope_|layer_types: |partial_rotary_factor: )",
    ):
        config_from_hf({**config, **LLAMA, "head_dim": head_dim, "hidden_act": config.get("hidden_act", "silu")})


# By default GLM-4-MoE has heads of 42 and DeepSeek-V2 no experts for a token, which no model has, and Granite 4 only
# Mamba's layers.
OF_KINDS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "glm4_moe": {"head_dim": 128},
    "granitemoehybrid": {"layer_types": ["full_attention"] * 32},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_keys_of_the_known_families_are_known(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    theirs = AutoConfig.for_model(kind, **OF_KINDS.get(kind, {}))
    config = {**theirs.to_dict(), "architectures": [FAMILIES[kind].architecture]}
    caplog.clear()  # of what transformers says of its own defaults
    assert config_from_hf(config).architecture == FAMILIES[kind].architecture
    assert not caplog.records


# Of config classes of transformers, keys that change nothing here: what is not computed (Mamba, images), is rounding or
# training, or follows from other keys. Of rope_parameters only the kinds of layers are looked for.
OF_LATENT = {"num_key_value_heads", "head_dim"}
OF_MAMBA = ("n_heads", "n_groups", "d_state", "d_head", "d_conv", "expand", "chunk_size", "conv_bias", "proj_bias")
IDLE: dict[str, set[str]] = {
    "gpt2": {"reorder_and_upcast_attn"},
    "gemma3_text": {"rope_parameters"},
    "gemma4_text": {"rope_parameters", "use_bidirectional_attention", "per_layer_config"},
    "olmo3": {"rope_parameters"},
    "exaone4": {"sliding_window_pattern"},
    "mixtral": {"router_jitter_noise"},
    "deepseek_v2": OF_LATENT,
    "deepseek_v3": OF_LATENT,
    "glm4_moe_lite": {"num_key_value_heads"},
    "youtu": OF_LATENT,
    "granitemoehybrid": {"position_embedding_type", "time_step_limit", *(f"mamba_{each}" for each in OF_MAMBA)},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_key_of_a_config_class_counts_or_is_known_not_to(kind: str) -> None:
    """Of a value that no model has, each that is read complains."""
    config = AutoConfig.for_model(kind, **OF_KINDS.get(kind, {})).to_dict()
    idle = set()
    for key in config:
        if HARMLESS.fullmatch(key):
            continue
        try:
            config_from_hf({**config, key: {"odd": [1]}})
        except ModelError:
            continue
        idle.add(key)
    assert idle == IDLE.get(kind, set())


def test_neutral_values_and_keys_of_training_pass_and_unknown_ones_are_told(caplog: pytest.LogCaptureFixture) -> None:
    harmless = {
        "logit_scale": 1.0,
        "attention_multiplier": 16**-0.5,
        "num_experts": 0,
        "no_rope_layers": None,
        "use_qk_norm": False,
        "unsloth_version": "2025.1",
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "attention_dropout": 0.1,
        "_attn_implementation_autoset": True,
    }
    plain = read()
    assert read(**harmless) == plain
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert read(favourite_colour="blue") == plain
    assert "favourite_colour" in caplog.text


# Keys of published config.json files that transformers does not read, and that say what is always so: of Command R7B
# and A, GPT-J 6B, StarCoder2 15B, Apertus, StableLM 2 12B, SmolLM3, EXAONE 4.5 and Granite 4.
PUBLISHED: dict[str, dict[str, Any]] = {
    "cohere2": {
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
        "use_embedding_sharing": True,
        "use_qk_norm": False,
        "order_of_interleaved_layers": "local_attn_first",
        "layer_switch": 4,
        "cache_implementation": "hybrid",
    },
    "gptj": {"rotary": True, "scale_attn_weights": True},
    "starcoder2": {"norm_type": "layer_norm", "mlp_type": "default", "rms_norm_eps": 1e-5},
    "apertus": {"qk_norm": True, "post_norm": False},
    "stablelm": {"use_norm_bias": True, "rotary_scaling_factor": 1.0},
    "smollm3": {"max_window_layers": 28},
    "exaone4": {"reorder_qk_norm": True, "max_window_layers": 4},
    "granitemoehybrid": {"normalization_function": "rmsnorm", "layer_types": ["attention"] * 3},
}
OTHERWISE = [
    ("cohere2", "position_embedding_type", "rope"),
    ("cohere2", "rotary_pct", 0.5),
    ("cohere2", "use_parallel_block", False),
    ("gptj", "rotary", False),
    ("starcoder2", "norm_type", "rms_norm"),
    ("apertus", "qk_norm", False),
    ("apertus", "post_norm", True),
]


def published(kind: str, **changes: object) -> dict[str, Any]:
    return {"model_type": kind, **(GPT if kind == "gptj" else SMALL), **PUBLISHED[kind], **changes}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_published_configs_say_of_what_is_always_so_passes(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = {key: value for key, value in published(kind).items() if key not in PUBLISHED[kind] or key == "layer_types"}
    assert config_from_hf(published(kind)) == config_from_hf(plain)
    assert not caplog.records


@pytest.mark.parametrize(("kind", "key", "value"), OTHERWISE)
def test_and_is_refused_where_it_says_otherwise(kind: str, key: str, value: object) -> None:
    with pytest.raises(ModelError, match=f"{key}: expected"):
        config_from_hf(published(kind, **{key: value}))


def test_names_that_classes_once_had_are_known() -> None:
    for kind, name in (("ernie4_5", "Ernie4_5_ForCausalLM"), ("llama", "LLaMAForCausalLM")):
        assert read(model_type=kind, architectures=[name]).architecture == FAMILIES[kind].architecture


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "olmo3", "gpt_oss", "youtu"])
def test_heads_that_turn_in_part_are_refused_where_transformers_turns_them_whole(kind: str) -> None:
    ropes: list[dict[str, Any]] = [{"partial_rotary_factor": 0.5}]
    rope = {"rope_type": "default", "partial_rotary_factor": 0.5}
    ropes.append({"rope_parameters": {"full_attention": rope} if kind in ("gemma3_text", "olmo3") else rope})
    for changes in ropes:
        with pytest.raises(ModelError, match="partial_rotary_factor"):
            read(model_type=kind, architectures=[FAMILIES[kind].architecture], **changes)


def test_null_is_the_default_where_the_class_of_the_config_has_one() -> None:
    for kind in ("gpt_oss", "apertus", "ministral3"):
        changes = {"model_type": kind, "architectures": [FAMILIES[kind].architecture], "hidden_act": ...}
        assert read(**changes, rope_parameters=None) == read(**changes)
        assert read(**changes).attentions[0].rope.kind != "default"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"residual_multiplier": 0.22}, "residual_multiplier = 0.22"),
        ({"attention_multiplier": 1.0}, "attention_multiplier"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"is_causal": False}, "is_causal = False"),
        ({"mup_width_scale": 0.5}, "mup_width_scale"),
        ({"quantization": {"bits": 4}}, "quantization"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}}, "mrope_section changes the rotation"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types names sliding_attention"),
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "layer_types: expected a list of"),
    ],
)
def test_what_changes_the_numbers_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError, match=key):
        read(**changes)


SIZES = [key for key in SMALL if key not in ("initializer_range", "pad_token_id", "bos_token_id")]
NO_SIZES = ["7", -1, 0, 10**12, 1.5, True, [], {}, float("nan"), float("inf"), pytest.param(10**5000, id="huge")]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", NO_SIZES)
def test_values_that_no_model_has_are_refused(key: str, value: Any) -> None:
    if key == "eos_token_id" and (value == [] or type(value) is int):
        assert without_unknown_ids(read(**{key: value})).eos_token_ids in ((), (0,))
        return
    with pytest.raises(ModelError, match=key):
        read(**{key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [None, "1e-5", 0, -1.0, float("nan"), float("inf"), [1e-5], False])
def test_numbers_that_no_model_has_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=key):
        read(**{key: value})


def test_special_ids_outside_the_vocabulary_are_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = without_unknown_ids(read(eos_token_id=[2, 211, -1, 10**30], bos_token_id=5000))
    assert (config.bos_token_id, config.eos_token_ids) == (None, (2,))
    assert len(caplog.records) == 1
    assert "5000, 211, -1" in caplog.text


def windows_of(config: ModelConfig) -> tuple[int, ...]:
    return tuple(each.window for each in config.attentions)


def test_absent_keys_are_the_defaults_of_transformers() -> None:
    """The window, heads, context, rotation, epsilon and tie, for each class of config."""
    base = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "max_position_embeddings")}
    base |= {"hidden_size": 2560, "num_attention_heads": 160}  # a multiple of any number of key-value heads
    base |= {"num_hidden_layers": 4}  # of which Qwen3.5 has one of attention
    for kind, family in FAMILIES.items():
        if kind in ("gemma4_text", "gpt2", "gptj", "falcon"):  # whose classes have it under other names; see below
            continue
        more: dict[str, Any] = {}
        if kind == "granitemoehybrid":  # by default of Mamba's layers alone, and without rope
            more = {"layer_types": ["full_attention"] * 4, "position_embedding_type": "rope"}
        if kind == "deepseek_v2":  # by default with no experts for a token
            more = {"num_experts_per_tok": 6}
        theirs = AutoConfig.for_model(kind, **base, **more)
        ours = config_from_hf({**base, **more, "model_type": kind})
        assert ours.architecture == family.architecture
        kv_heads, head_dim = getattr(theirs, "num_key_value_heads", None), getattr(theirs, "head_dim", None) or 16
        latent = hasattr(theirs, "kv_lora_rank")
        if latent:  # all heads have one latent
            kv_heads, head_dim = 1, theirs.qk_nope_head_dim + theirs.qk_rope_head_dim
        assert {each.num_kv_heads for each in ours.attentions} == {kv_heads or 160}
        assert ours.max_position == theirs.max_position_embeddings
        assert {each.own_head_dim for each in ours.attentions} == {head_dim}
        of_all = "sliding_attention" if kind in ("mistral", "ministral") else "full_attention"
        kinds = [each for each in getattr(theirs, "layer_types", None) or [of_all] * 4 if each != "linear_attention"]
        windows = tuple((theirs.sliding_window or 0) if each == "sliding_attention" else 0 for each in kinds)
        assert windows_of(ours) == windows
        rope = theirs.rope_parameters
        of_kinds = [rope[each] for each in set(kinds)] if "full_attention" in rope else [rope]
        assert {rope.theta for rope in ours.ropes if rope != NO_ROPE} == {each["rope_theta"] for each in of_kinds}
        turning = int((theirs.qk_rope_head_dim if latent else head_dim) * rope.get("partial_rotary_factor", 1.0))
        assert {rope.rotary_dim for rope in ours.ropes if rope != NO_ROPE} == {turning}
        names = [name for name in dir(theirs) if re.fullmatch(r"(rms_|layer_)?norm_eps(ilon)?", name)]
        assert ours.norm.eps == (getattr(theirs, names[0]) if names else 1e-5)
        assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    gpt2 = config_from_hf({**base, "model_type": "gpt2"})
    assert (gpt2.max_position, gpt2.learned_positions, gpt2.norm.eps) == (1024, 1024, 1e-5)
    gptj = config_from_hf({**base, "model_type": "gptj", "num_attention_heads": 20})
    assert (gptj.max_position, gptj.attentions[0].rope.rotary_dim, gptj.norm.eps) == (2048, 64, 1e-5)
    falcon = config_from_hf({**base, "model_type": "falcon"})
    assert (falcon.max_position, falcon.attentions[0].num_kv_heads, falcon.norm.eps) == (2048, 1, 1e-5)
    assert [each.tie_word_embeddings for each in (gpt2, gptj, falcon)] == [True, False, True]
    gemma4 = config_from_hf({**base, "model_type": "gemma4_text", "num_attention_heads": 8})
    assert windows_of(gemma4) == (512, 512, 512, 0)
    of_heads = [(each.num_kv_heads, each.head_dim, each.rope.theta) for each in gemma4.attentions]
    assert of_heads == [(4, 256, 1e4)] * 3 + [(4, 512, 1e6)]
    assert [each.rope.turning for each in gemma4.attentions] == [0, 0, 0, 64]
    assert (gemma4.max_position, gemma4.token_vocab, gemma4.tie_word_embeddings) == (131072, 262144, True)
    assert windows_of(read(model_type="mistral", sliding_window=None)) == (0, 0, 0)
    windows = windows_of(read(model_type="qwen2", use_sliding_window=True, max_window_layers=2))
    theirs = Qwen2Config(**SMALL, use_sliding_window=True, max_window_layers=2)
    assert windows == tuple(
        theirs.sliding_window if kind == "sliding_attention" else 0 for kind in theirs.layer_types or []
    )
    assert MistralConfig().sliding_window == 4096


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, dict[str, Any]] = {
    "rope_scaling beside rope_parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_scaling": YARN,
    },
    "rope_scaling, and theta in rope_parameters": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": YARN,
    },
    "rope_scaling empty": {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {}},
    "original context on top": {
        "rope_scaling": {"type": "yarn", "factor": 4.0},
        "original_max_position_embeddings": 64,
    },
    "original context on top and inside": {"rope_scaling": YARN, "original_max_position_embeddings": 128},
    "factor without a type": {"rope_scaling": {"factor": 4.0}},
    "theta on top": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
}


@pytest.mark.parametrize("case", ROPES)
def test_rope_of_a_config_is_that_of_transformers(case: str) -> None:
    values = {**LLAMA, **copy.deepcopy(ROPES[case])}
    config = transformers.LlamaConfig(**{**SMALL, **copy.deepcopy(ROPES[case])})
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1, 300, 16), torch.arange(300)[None])
    expected = torch.cat([cos[0, :, :8], sin[0, :, :8]], dim=1)
    torch.testing.assert_close(rotary_table(*config_from_hf(values).ropes, 300), expected, rtol=0, atol=2e-4)


def test_dynamic_rope_is_plain_up_to_the_original_context() -> None:
    config = read(rope_scaling={"type": "dynamic", "factor": 4.0})
    assert (config.plain_context, config.max_position) == (512, 2048)
    plain = rotary_table(*read().ropes, 512)
    assert torch.equal(rotary_table(*config.ropes, config.plain_context), plain)
    assert not torch.equal(rotary_table(*config.ropes, 513)[:512], plain)


def test_gemma_3_4b_leaves_out_what_is_the_default_of_its_class() -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106]}
    config = config_from_hf({**outer, "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert (config.vocab_size, config.max_position, config.eos_token_ids) == (262208, 131072, (1, 106))
    assert config.tie_word_embeddings
    near, whole = config.layers[0].mixer, config.layers[5].mixer
    assert (near.num_heads, near.num_kv_heads, near.head_dim, near.softmax_scale) == (8, 4, 256, 1 / 16)
    assert (near.window, near.rope.theta, near.rope.kind) == (1024, 1e4, "default")
    assert (whole.window, whole.rope.theta, whole.rope.kind, whole.rope.factor) == (0, 1e6, "linear", 8.0)
    assert windows_of(config) == tuple(0 if layer % 6 == 5 else 1024 for layer in range(34))
