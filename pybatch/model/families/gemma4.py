"""Gemma 4: as Gemma 3 without its offsets of norms, with values divided by their root mean square. Layers that see all
have heads of their own size, of which only the first frequencies turn, and may take their keys for values. The last
layers may read keys and values of earlier ones. A layer may have inputs that are a token's own, or experts beside its
MLP.
"""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    AttentionConfig,
    LayerConfig,
    MLPBesideMoEConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
    Scales,
)
from pybatch.model.errors import ModelError
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.gemma2 import NAMES, layer_kinds, soft_cap
from pybatch.model.families.source import Source
from pybatch.model.fields import Fields

CONTEXT = 131072
DEFAULTS = {  # of the config class
    "vocab_size": 262144,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
    },
}


def shape(source: Source) -> Shape:
    if source.get("use_bidirectional_attention") == "all":
        raise ModelError(f"{source.where}: use_bidirectional_attention: expected causal attention of texts, got 'all'")
    count, window = source.num_layers(), source.window(absent=512)
    kinds = layer_kinds(source, count, window, period=6)
    kinds[-1] = "full_attention"  # whatever the config says
    mixers = [_attention(source, index, kind, window) for index, kind in enumerate(kinds)]
    shared = source.integer("num_kv_shared_layers", 0, low=0, high=MAX_LAYERS)
    first_shared = count - shared
    own = kinds[:first_shared]
    if shared and (shared >= count or set(own) != set(kinds)):
        raise ModelError(
            f"{source.where}: num_kv_shared_layers: expected a layer of each kind before the last {shared} of {count}, "
            "whose keys and values they read"
        )
    activation = source.activation("hidden_activation", "gelu_pytorch_tanh")
    wider = 2 if source.flag("use_double_wide_mlp") else 1
    experts = _experts(source, activation) if source.flag("enable_moe_block") else None
    token_width = source.integer("hidden_size_per_layer_input", 256, low=0, high=MAX_WIDTH, nullable=True) or 0

    def layer(index: int, mixer: AttentionConfig) -> LayerConfig:
        width = source.integer_of_layer("intermediate_size", index, 9216, MAX_WIDTH)
        if index >= first_shared:
            mixer, width = replace(mixer, kv_of=first_shared - 1 - own[::-1].index(kinds[index])), width * wider
        mlp = MLPConfig(width=width, activation=activation)
        inner = mlp if experts is None else MLPBesideMoEConfig(mlp=mlp, moe=experts)
        return LayerConfig(mixer=mixer, mlp=inner, token_width=token_width, scaled=True)

    vocab = source.integer("vocab_size_per_layer_input", 262144, low=0, high=MAX_VOCAB)
    return Shape(
        layers=tuple(layer(index, kind) for index, kind in enumerate(mixers)),
        norm=NormConfig(eps=source.norm_eps()),
        context=source.context(CONTEXT),
        tie_word_embeddings=source.flag("tie_word_embeddings", True),
        token_vocab=vocab if token_width else 0,
        scales=Scales(
            embedding=source.hidden_size() ** 0.5, logits_soft_cap=soft_cap(source, "final_logit_softcapping", 0.0)
        ),
    )


def _attention(source: Source, index: int, kind: str, window: int) -> AttentionConfig:
    near, context, bias = kind == "sliding_attention", source.context(CONTEXT), source.flag("attention_bias")
    head_dim = source.head_dim(256)
    kv_heads = source.integer_of_layer("num_key_value_heads", index, 4, MAX_HEADS)
    v_is_k = source.flag("attention_k_eq_v") and not near
    own = source.mapping("per_layer_config")  # as transformers saves what differs, in place of the next two
    whole_dim = source.integer("global_head_dim", 512, high=MAX_WIDTH)
    whole_heads = source.integer("num_global_key_value_heads", None, high=MAX_HEADS, nullable=True)
    if own:
        fields = Fields(own, f"per_layer_config in {source.where}").mapping(str(index))
        layer = Fields(fields, f"per_layer_config of layer {index} in {source.where}")
        head_dim = layer.integer("head_dim", head_dim, high=MAX_WIDTH)
        kv_heads = layer.integer("num_key_value_heads", kv_heads, high=MAX_HEADS)
        if unread := sorted(set(fields) - layer.asked):
            raise ModelError(f"{layer.where}: {unread[0]} is not known here")
    elif not near:
        head_dim, kv_heads = whole_dim, whole_heads if v_is_k and whole_heads else kv_heads
    return AttentionConfig(
        num_heads=source.num_heads(),
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope=source.rope_of_kind(kind, head_dim, context, theta=1e4 if near else 1e6),
        window=window if near else 0,
        scale=1.0,
        bias=bias,
        out_bias=bias,
        qk_norm=True,
        v_norm=True,
        v_is_k=v_is_k,
    )


def _experts(source: Source, activation: str) -> MoEConfig:
    return MoEConfig(
        experts=source.integer("num_experts", high=MAX_EXPERTS),
        top_k=source.integer("top_k_experts", high=MAX_EXPERTS),
        width=source.integer("moe_intermediate_size", high=MAX_WIDTH),
        activation=activation,
        normalize=True,
        router_scale=True,
        expert_scale=True,
    )


FAMILY = Family(
    model_type="gemma4_text",
    architecture="Gemma4ForCausalLM",
    shape=shape,
    names={
        **NAMES,
        "token_embedding": "model.embed_tokens_per_layer",
        "token_projection": "model.per_layer_model_projection",
        "token_norm": "model.per_layer_projection_norm",
        "token_gate": "per_layer_input_gate",
        "token_out": "per_layer_projection",
        "token_post_norm": "post_per_layer_input_norm",
        "layer_scale": "layer_scalar",
        "router": "router.proj",
        "expert_norm": "pre_feedforward_layernorm_2",
        "experts_gate_up": "experts.gate_up_proj",
        "experts_down": "experts.down_proj",
        "beside_mlp_norm": "post_feedforward_layernorm_1",
        "beside_moe_norm": "post_feedforward_layernorm_2",
    },
    defaults=DEFAULTS,
    gguf=GGUFFamily(
        architecture="gemma4",
        keys={
            "head_dim": "attention.key_length_swa",
            "global_head_dim": "attention.key_length",
            "num_kv_shared_layers": "attention.shared_kv_layers",
            "hidden_size_per_layer_input": "embedding_length_per_layer_input",
            "final_logit_softcapping": "final_logit_softcapping",
            "num_experts": "expert_count",
            "top_k_experts": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length",
        },
    ),
)
