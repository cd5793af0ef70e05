"""What a family's file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pybatch.model.config import LayerConfig, NormConfig, Scales
from pybatch.model.families.source import Source

# The roles of tensors in a decoder, and their names in Llama's checkpoints: of the first group in the model, of the
# second in a layer; "": Llama has none. A family names those that it calls otherwise.
LLAMA_NAMES: Mapping[str, str] = {
    "embedding": "model.embed_tokens",
    "layer": "model.layers.{}",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
    "positions": "",
    "token_embedding": "",  # of inputs of all layers; see blocks/token_inputs.py
    "token_projection": "",
    "token_norm": "",
    #
    "mixer_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attention_out": "self_attn.o_proj",
    "q_a": "self_attn.q_a_proj",  # of latent attention, from here
    "q_a_norm": "self_attn.q_a_layernorm",
    "q_b": "self_attn.q_b_proj",
    "kv_a": "self_attn.kv_a_proj_with_mqa",
    "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b": "self_attn.kv_b_proj",
    "k_b": "self_attn.k_b_proj",  # these two in place of kv_b, in GGUF files
    "v_b": "self_attn.v_b_proj",
    "mixer_post_norm": "",  # of what the attention adds to the residual stream
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "mlp_post_norm": "",
    **{f"xielu_{name}": f"mlp.act_fn.{name}" for name in ("alpha_p", "alpha_n", "beta", "eps")},  # whole names
    "token_gate": "",
    "token_out": "",
    "token_post_norm": "",
    "layer_scale": "",  # one number, by its whole name
    # Mixtures of experts: of one expert, whose number is put in; of all experts in one tensor, by its whole name; of
    # the MLP that all tokens go through.
    "router": "mlp.gate",
    "expert_gate": "mlp.experts.{}.gate_proj",
    "expert_up": "mlp.experts.{}.up_proj",
    "expert_down": "mlp.experts.{}.down_proj",
    "experts_gate_up": "mlp.experts.gate_up_proj",
    "experts_down": "mlp.experts.down_proj",
    "expert_norm": "",  # where experts do not read what mlp_norm gives
    "router_scale": "router.scale",  # this and the next by their whole names
    "expert_scale": "router.per_expert_scale",
    "beside_mlp_norm": "",  # of an MLP beside experts, and of these, before their sum
    "beside_moe_norm": "",
    "router_correction": "mlp.gate.e_score_correction_bias",
    "sinks": "self_attn.sinks",
    "shared_router": "mlp.shared_expert_gate",
    "shared_gate": "mlp.shared_expert.gate_proj",
    "shared_up": "mlp.shared_expert.up_proj",
    "shared_down": "mlp.shared_expert.down_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a family makes of a model's fields."""

    layers: tuple[LayerConfig, ...]
    norm: NormConfig
    context: int  # max_position_embeddings
    tie_word_embeddings: bool
    head_bias: bool = False
    learned_positions: int = 0
    token_vocab: int = 0
    scales: Scales = field(default_factory=Scales)


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFamily:
    """How the family is in GGUF files.

    keys: GGUF's names of keys of config.json besides those that all have (see gguf_source.py), without the
    architecture in front. constants: keys that the architecture implies. adjacent_pairs: as in Family. stacked: roles
    of tensors that it has in parts, and the roles of these. tiled_value_heads: of gated delta nets it has the first
    value head of every key head, then the second of each, and so on.
    """

    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    adjacent_pairs: bool = False
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tiled_value_heads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """model_type: of config.json. architecture: the class of transformers. shape: reads the fields; what it does not
    ask for and would change the numbers is refused. names: of tensors that Llama calls otherwise (see LLAMA_NAMES) or
    has not; "": there is none. keys: of config.json that most families call otherwise. adjacent_pairs: rows of q and k
    have the two elements that turn together side by side. defaults: of keys of config.json that every other model's
    has. other_names: of norms that some of its checkpoints call otherwise. by_input: matrices of layers have a row for
    each input. experts_by_turns: in the tensor of all experts rows of gate and up come by turns. experts_by_input:
    where it is not quantised, it has a row for each input.
    """

    model_type: str
    architecture: str
    shape: Callable[[Source], Shape]
    names: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    adjacent_pairs: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    other_names: Mapping[str, str] = field(default_factory=dict)
    by_input: bool = False
    experts_by_turns: bool = False
    experts_by_input: bool = False
    gguf: GGUFFamily | None = None

    def has(self, role: str) -> bool:
        return bool(self.names.get(role, LLAMA_NAMES.get(role)))

    def tensor(self, role: str, layer: int | None = None) -> str:
        """The name of a tensor, without .weight or .bias."""
        names = {**LLAMA_NAMES, **self.names}
        return names[role] if layer is None else f"{names['layer'].format(layer)}.{names[role]}"
