"""The shape of a model, read from a Hugging Face config.json. (gguf_checkpoint.py reads it from a GGUF file.)"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.rope import MAX_POSITIONS, RopeConfig
from pybatch.model.unread_keys import check_unread_keys

logger = logging.getLogger(__name__)

FAMILIES = {  # model_type -> the class of transformers
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ARCHITECTURES = tuple(FAMILIES.values())
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}

# What a class of transformers has where its config.json says nothing.
DEFAULT_CONTEXT = {"LlamaForCausalLM": 2048, "MistralForCausalLM": 131072}
DEFAULT_KV_HEADS = {"MistralForCausalLM": 8, "Qwen2ForCausalLM": 32, "Qwen3ForCausalLM": 32}
DEFAULT_WINDOW = 4096
QUOTES = "\"'"
LAYER_TYPES = ("full_attention", "sliding_attention")

# More than any model has: numbers beyond are damage, and are refused before anything is made of them.
MAX_VOCAB = 1 << 24
MAX_WIDTH = 1 << 22
MAX_LAYERS = 4096
MAX_HEADS = 1 << 14

READ = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "partial_rotary_factor",
        "original_max_position_embeddings",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "layer_types",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

    name: str
    architecture: str  # one of ARCHITECTURES
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    max_position: int  # the longest context that it can have
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # of the q, k and v projections
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each head of q and k, before the rotation
    sliding_window: tuple[int, ...]  # per layer: how many last tokens a query sees, 0: all
    activation: str = "silu"  # or "gelu_tanh"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.head_dim % 8 or not 8 <= self.head_dim <= 256:
            raise ModelError(f"head_dim: expected a multiple of 8 up to 256, got {self.head_dim} in {self.name}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"num_heads: expected a multiple of num_kv_heads ({self.num_kv_heads}), "
                f"got {self.num_heads} in {self.name}"
            )

    @property
    def plain_context(self) -> int:
        """The context where no length is asked for."""
        return self.rope.plain_length(self.max_position)


def config_from_hf(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None, *, name: str = "model"
) -> ModelConfig:
    """Reads a config.json, and the end-of-sequence ids of a generation_config.json.

    Raises ModelError for an architecture, activation or rope type that is not among those known, for values that no
    model has, and for keys that would change the numbers and are not known here.
    """
    fields = Fields(config, f"config.json of {name}")
    architecture = _architecture(fields, name)
    quantization = fields.mapping("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "some method")
        raise ModelError(
            f"{name} is quantised by {short(method).strip(QUOTES)}; expected float32, float16 or bfloat16 weights"
        )
    activation = fields.text("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ModelError(f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {short(activation)} in {name}")

    num_heads = fields.integer("num_attention_heads", high=MAX_HEADS)
    hidden_size = fields.integer("hidden_size", high=MAX_WIDTH)
    default_head_dim = 128 if architecture == "Qwen3ForCausalLM" else hidden_size // num_heads
    head_dim = fields.integer("head_dim", default_head_dim, high=MAX_WIDTH, nullable=True)
    default_kv_heads = num_heads if "num_key_value_heads" in fields else DEFAULT_KV_HEADS.get(architecture, num_heads)
    check_unread_keys(config, READ, head_dim, fields.where)
    context = fields.integer("max_position_embeddings", DEFAULT_CONTEXT.get(architecture, 32768), high=MAX_POSITIONS)
    has_bias = fields.flag("attention_bias")
    num_layers = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    rope = RopeConfig.from_hf(config, head_dim, context, fields.where)
    ends = Fields(generation_config or {}, f"generation_config.json of {name}")
    bos = fields.ids("bos_token_id")
    return ModelConfig(
        name=name,
        architecture=architecture,
        vocab_size=fields.integer("vocab_size", high=MAX_VOCAB),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size", high=MAX_WIDTH),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", default_kv_heads, high=MAX_HEADS, nullable=True),
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6, high=1.0),
        rope=rope,
        max_position=min(rope.context_length(context), MAX_POSITIONS),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        attention_bias=has_bias or architecture == "Qwen2ForCausalLM",
        attention_out_bias=has_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=fields.flag("mlp_bias"),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_window=_sliding_windows(fields, architecture, num_layers),
        activation=ACTIVATIONS[activation],
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=merge_ids(fields.ids("eos_token_id"), ends.ids("eos_token_id")),
    )


def unknown_architecture(architecture: str, name: str, known: tuple[str, ...] = ARCHITECTURES) -> ModelError:
    return ModelError(f"{name} is of architecture {architecture}, which is not known here; known: {', '.join(known)}")


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


def _architecture(fields: Fields, name: str) -> str:
    """The class of transformers that `model_type` names, as transformers itself has it: people rename classes. The
    class in `architectures` decides alone where there is no model_type, and must be a known one where there is."""
    kind = fields.text("model_type", None)
    classes = fields.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
        raise ModelError(f"{fields.where}: architectures: expected a list of names, got {short(classes)}")
    if kind is None and not classes:
        raise ModelError(f"{fields.where}: expected model_type, one of {', '.join(FAMILIES)}")
    if kind is not None and kind not in FAMILIES:
        raise unknown_architecture(f"model_type {short(kind)}", name, tuple(FAMILIES))
    if classes and classes[0] not in ARCHITECTURES:
        raise unknown_architecture(short(classes[0]).strip(QUOTES), name)
    return FAMILIES[kind] if kind is not None else classes[0]


def _sliding_windows(fields: Fields, architecture: str, layers: int) -> tuple[int, ...]:
    """Per layer. `layer_types` is honoured for Qwen, and for the others refused where it says anything else than the
    rest of the config: transformers does not read it there."""
    window = fields.integer("sliding_window", None, high=MAX_POSITIONS, low=0, nullable=True) or 0
    if "sliding_window" not in fields and architecture != "LlamaForCausalLM":
        window = DEFAULT_WINDOW
    qwen = architecture in ("Qwen2ForCausalLM", "Qwen3ForCausalLM")
    if architecture == "LlamaForCausalLM" or (qwen and not fields.flag("use_sliding_window")):
        window = 0
    first = fields.integer("max_window_layers", 28, low=0, high=MAX_LAYERS) if qwen else 0
    windows = tuple(window if layer >= first else 0 for layer in range(layers))
    kinds = fields.get("layer_types")
    if kinds is None:
        return windows
    if not isinstance(kinds, list) or not all(kind in LAYER_TYPES for kind in kinds):
        raise ModelError(
            f"{fields.where}: layer_types: expected a list of {', '.join(LAYER_TYPES)}, got {short(kinds)}"
        )
    if len(kinds) != layers:
        raise ModelError(f"{fields.where}: layer_types: expected {layers}, one a layer, got {len(kinds)}")
    named = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if "sliding_attention" in kinds and not window:
        raise ModelError(f"{fields.where}: layer_types names sliding_attention, but there is no sliding_window")
    if not qwen and named != windows:
        raise ModelError(
            f"{fields.where}: layer_types does not agree with sliding_window, which decides for {architecture}"
        )
    return named
