"""GPT-J: an MLP without gates beside the attention, both behind one LayerNorm; adjacent pairs turn."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.config import MAX_WIDTH, NormConfig
from pybatch.model.families.family import Family, Shape
from pybatch.model.families.llama import alike, with_biases
from pybatch.model.families.source import Source

KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
}


def shape(source: Source) -> Shape:
    source.expect(rotary=True)  # what EleutherAI's own config says of what is always so
    hidden, context = source.hidden_size(), source.context(2048)
    head_dim = hidden // source.num_heads()
    turning = source.integer("rotary_dim", 64, high=MAX_WIDTH, nullable=True) or head_dim
    rope = replace(source.rope(head_dim, context), rotary_dim=min(turning, head_dim))
    norm = NormConfig(kind="layer", eps=source.norm_eps("layer_norm_eps", 1e-5), bias=True)
    decoder = alike(
        source, context=context, activation="gelu_new", gated=False, norm=norm, rope=rope, mlp_width=4 * hidden
    )
    decoder = with_biases(decoder, qkv=False, out=False, mlp=True)
    layers = tuple(replace(layer, parallel=True, one_norm=True) for layer in decoder.layers)
    return replace(decoder, layers=layers, head_bias=True)


FAMILY = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    shape=shape,
    names={
        "embedding": "transformer.wte",
        "layer": "transformer.h.{}",
        "final_norm": "transformer.ln_f",
        "mixer_norm": "ln_1",
        "q": "attn.q_proj",
        "k": "attn.k_proj",
        "v": "attn.v_proj",
        "attention_out": "attn.out_proj",
        "up": "mlp.fc_in",
        "down": "mlp.fc_out",
    },
    keys=KEYS,
    adjacent_pairs=True,
)
