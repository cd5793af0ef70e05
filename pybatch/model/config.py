"""The shape of a model: what a decoder is built from. families/ reads it from a config.json or GGUF metadata."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pybatch.model.errors import ModelError
from pybatch.model.fields import short
from pybatch.model.rope import RopeConfig

logger = logging.getLogger(__name__)

# More than any model has: numbers beyond are damage, and are refused before anything is made of them.
MAX_VOCAB = 1 << 24
MAX_WIDTH = 1 << 22
MAX_LAYERS = 4096
MAX_HEADS = 1 << 14
MAX_EXPERTS = 1024

MAX_HEAD_DIM = 512  # that the kernels of attention take
MAX_KEY_DIM, MAX_TAPS = 256, 8  # that the kernels of linear attention take
MAX_LATENT_WIDTH, LATENT_STEP = 2048, 16  # of caches of latents: the most, and what they are a multiple of


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention over rotated keys."""

    num_heads: int
    num_kv_heads: int
    head_dim: int  # of the kernels and the KV cache: a multiple of 8
    stored_head_dim: int | None = None  # of the checkpoint, where it is less: heads are filled up with zeros
    rope: RopeConfig
    window: int = 0  # how many last tokens a query sees, 0: all
    scale: float | None = None  # of scores before the softmax; None: head_dim ** -0.5
    soft_cap: float = 0.0  # c in c * tanh(score / c), 0: none
    sinks: bool = False  # a logit of each head in the softmax that has no value
    bias: bool = False  # of the q, k and v projections
    out_bias: bool = False
    qk_norm: bool = False  # the model's norm of q and k
    qk_norm_over: str = "head"  # what it is over; "own": with weights of each head's own; "all": all heads at once
    qk_norm_bias: bool = False  # of LayerNorm
    qk_norm_last: bool = False  # after the rotation instead of before it
    v_norm: bool = False  # each head of v is divided by its root mean square
    v_is_k: bool = False  # as projected, before any norm or rotation
    kv_ranks: int = 1  # by how many ranks each of the heads of keys is held
    kv_of: int | None = None  # the layer whose keys and values are read in place of own ones
    gated: bool = False  # the output is multiplied by the sigmoid of a projection as wide as q

    @property
    def softmax_scale(self) -> float:
        return self.own_head_dim**-0.5 if self.scale is None else self.scale

    @property
    def own_head_dim(self) -> int:
        return self.stored_head_dim or self.head_dim

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def filled(self) -> AttentionConfig:
        """With heads that the kernels take."""
        multiple = -(-self.head_dim // 8) * 8
        return self if multiple == self.head_dim else replace(self, head_dim=multiple, stored_head_dim=self.head_dim)

    def check(self, name: str) -> None:
        if self.head_dim % 8 or not 8 <= self.head_dim <= MAX_HEAD_DIM:
            raise ModelError(f"head_dim: expected a multiple of 8 up to {MAX_HEAD_DIM}, got {self.head_dim} in {name}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_heads: expected a multiple of num_kv_heads ({self.num_kv_heads}), got {self.num_heads} in {name}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttentionConfig:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads are made of one latent vector a
    token, which is what the cache keeps, beside a rotated part of the keys that all heads share."""

    num_heads: int
    key_dim: int  # of a head, which does not turn
    value_dim: int
    latent: int
    query_latent: int = 0  # of which queries are made likewise; 0: of the residual stream itself
    rope: RopeConfig  # its rotary_dim is the rest of a key
    interleaved: bool = True  # elements that turn together lie side by side
    scale: float | None = None  # of scores before the softmax; None: (key_dim + rotary_dim) ** -0.5
    norm_eps: float = 1e-6  # of latents
    bias: bool = False  # of the projections of the residual stream to latents
    out_bias: bool = False

    # What attention of every kind has.
    num_kv_heads = 1
    window = 0
    soft_cap = 0.0
    sinks = False
    kv_of = None

    @property
    def own_head_dim(self) -> int:
        return self.key_dim + self.rope.rotary_dim

    @property
    def head_dim(self) -> int:
        """Of the cache."""
        return -(-(self.latent + self.rope.rotary_dim) // LATENT_STEP) * LATENT_STEP

    @property
    def softmax_scale(self) -> float:
        return self.own_head_dim**-0.5 if self.scale is None else self.scale

    @property
    def q_width(self) -> int:
        return self.num_heads * self.own_head_dim

    def check(self, name: str) -> None:
        if self.head_dim > MAX_LATENT_WIDTH:
            raise ModelError(
                f"kv_lora_rank, qk_rope_head_dim: expected at most {MAX_LATENT_WIDTH} in sum, got {self.latent} and "
                f"{self.rope.rotary_dim} in {name}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaConfig:
    """Linear attention by the gated delta rule, behind a short convolution over time (Gated DeltaNet, Yang, Kautz and
    Hatamizadeh 2024): in place of keys and values a sequence has a state of one size."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int  # of the convolution

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_width + self.value_width

    def check(self, name: str) -> None:
        if self.key_dim > MAX_KEY_DIM:
            raise ModelError(f"key_dim: expected at most {MAX_KEY_DIM}, got {self.key_dim} in {name}")
        if self.value_heads % self.key_heads:
            raise ModelError(
                f"value_heads: expected a multiple of key_heads ({self.key_heads}), got {self.value_heads} in {name}"
            )
        if not 2 <= self.taps <= MAX_TAPS:
            raise ModelError(f"taps: expected 2 to {MAX_TAPS}, got {self.taps} in {name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPConfig:
    """down(activation(gate(x)) * up(x)), or if not gated down(activation(up(x)))."""

    width: int
    activation: str = "silu"  # or "gelu_tanh"; not gated: "gelu", "gelu_tanh", "relu2" or "xielu"
    gated: bool = True
    bias: bool = False

    def check(self, name: str) -> None:
        pass


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """The sum of weight * MLP(x) over the experts that a router gives a token (Shazeer et al. 2017), and of an MLP that
    all tokens go through. How the router chooses and weights: see ops.route_experts."""

    experts: int
    top_k: int
    width: int  # of an expert
    activation: str = "silu"  # or "gelu_tanh", or "clamped_swiglu"
    alpha: float = 1.702  # of clamped_swiglu; see ops
    limit: float = 7.0
    bias: bool = False  # of the projections of experts
    router_bias: bool = False
    router_scale: bool = False  # the router's norm has its own weights, which are multiplied by hidden_size ** -0.5
    expert_scale: bool = False  # of each expert, by which its weight is multiplied
    scoring: str = "softmax"  # or "sigmoid", or "top_k_softmax"
    correction: bool = False  # the choice is by score plus a number of each expert
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1
    normalize: bool = False
    scale: float = 1.0
    shared_width: int = 0  # of the MLP that all tokens go through, 0: there is none
    shared_gate: bool = False  # what it gives is multiplied by sigmoid(gate @ x)

    @property
    def shared(self) -> MLPConfig:
        return MLPConfig(width=self.shared_width, activation=self.activation)

    def check(self, name: str) -> None:
        if self.experts % self.groups or self.top_groups > self.groups:
            raise ModelError(
                f"n_group, topk_group: expected a divisor of {self.experts} experts and at most as many, "
                f"got {self.groups} and {self.top_groups} in {name}"
            )
        choice = self.experts // self.groups * self.top_groups
        if self.top_k > choice:
            raise ModelError(f"num_experts_per_tok: expected at most {choice}, got {self.top_k} in {name}")
        if self.group_best > self.experts // self.groups:
            raise ModelError(
                f"n_group: expected groups of at least {self.group_best} of the {self.experts} experts, got "
                f"{self.groups} in {name}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MLPBesideMoEConfig:
    """norm(MLP(norm(x))) + norm(MoE(norm(x))), with norms of their own."""

    mlp: MLPConfig
    moe: MoEConfig

    def check(self, name: str) -> None:
        self.moe.check(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """x + mixer(norm(x)), and of that x + mlp(norm(x)); parallel: x + mixer(norm(x)) + mlp(norm(x)).

    token_width: then x + norm(projection(gelu_tanh(gate(x)) * what the token itself has for the layer)), of so many
    elements; 0: there is none. scaled: all of it is multiplied by a number of the layer's own.
    one_norm: the MLP reads what the mixer reads.
    """

    mixer: AttentionConfig | LatentAttentionConfig | GatedDeltaConfig
    mlp: MLPConfig | MoEConfig | MLPBesideMoEConfig
    parallel: bool = False
    one_norm: bool = False
    token_width: int = 0
    scaled: bool = False

    def with_attention(self, **changes: Any) -> LayerConfig:
        """With these fields of its attention changed."""
        assert isinstance(self.mixer, AttentionConfig)
        return replace(self, mixer=replace(self.mixer, **changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    kind: str = "rms"  # or "layer": LayerNorm
    eps: float
    weight: bool = True
    bias: bool = False  # of LayerNorm
    offset: float = 0.0  # added to the weights of the file: Gemma's are around 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """By what numbers are multiplied on their way through a decoder; 1: by none."""

    embedding: float = 1.0
    residual: float = 1.0  # what a block adds to the residual stream
    logits: float = 1.0
    logits_soft_cap: float = 0.0  # c in c * tanh(logits / c), of logits so scaled; 0: none


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder: embedding, layers, a norm, and the projection to the vocabulary."""

    name: str
    family: str  # the model_type that says how to read the checkpoint; see families/
    architecture: str  # the class of transformers
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    norm: NormConfig
    max_position: int  # the longest context that it can have
    scales: Scales = Scales()
    tie_word_embeddings: bool = False
    head_bias: bool = False  # of the projection to the vocabulary
    learned_positions: int = 0  # of an embedding of positions that is added to that of tokens; 0: there is none
    first_layer: int = 0  # the number of the first of layers, of a stage that has some of a model's
    token_vocab: int = 0  # of an embedding that has inputs of each layer (Gemma's per-layer embeddings); 0: none
    num_labels: int = 0  # that it sorts texts into by a head of its own, 0: it has none
    generates: bool = True  # False: there is no projection to the vocabulary
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for layer in set(self.layers):
            layer.mixer.check(self.name)
            layer.mlp.check(self.name)
        heads = [each for each in self.attentions if isinstance(each, AttentionConfig)]
        if self.norm.kind == "layer" and any(each.qk_norm and each.stored_head_dim for each in heads):
            raise ModelError(f"head_dim: expected a multiple of 8 beside LayerNorm of q and k in {self.name}")
        if self.token_vocab and self.token_vocab < self.vocab_size:
            raise ModelError(
                f"vocab_size_per_layer_input: expected at least vocab_size ({self.vocab_size}), got {self.token_vocab} "
                f"in {self.name}"
            )
        if not self.attentions:
            raise ModelError(f"{self.name}: expected at least one layer of attention")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attentions(self) -> tuple[AttentionConfig | LatentAttentionConfig, ...]:
        """Of the layers that have keys and values of their own, in order."""
        mixers = (layer.mixer for layer in self.layers)
        return tuple(mixer for mixer in mixers if not isinstance(mixer, GatedDeltaConfig) and mixer.kv_of is None)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """Each once."""
        return tuple(dict.fromkeys(mixer.rope for mixer in self.attentions))

    @property
    def plain_context(self) -> int:
        """The context where no length is asked for."""
        return min(rope.plain_length(self.max_position) for rope in self.ropes)


def merge_ids(*ids: int | Sequence[int] | None) -> tuple[int, ...]:
    """Every id once, in the order they come; each argument is an id, a sequence of ids or None."""
    flat = (i for group in ids if group is not None for i in ([group] if isinstance(group, int) else group))
    return tuple(dict.fromkeys(flat))


def without_unknown_ids(config: ModelConfig) -> ModelConfig:
    """The config without special ids that the vocabulary does not have; one warning names them."""
    size, bos = config.vocab_size, config.bos_token_id
    unknown = [i for i in merge_ids(bos, config.eos_token_ids) if not 0 <= i < size]
    if not unknown:
        return config
    logger.warning(
        "%s: special token ids outside the vocabulary of %d are ignored: %s",
        config.name, size, ", ".join(short(i, 20) for i in unknown),
    )  # fmt: skip
    return replace(
        config,
        bos_token_id=None if bos in unknown else bos,
        eos_token_ids=tuple(i for i in config.eos_token_ids if i not in unknown),
    )
