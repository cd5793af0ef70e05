"""The shape of a model, read from a Hugging Face config.json. (gguf.py reads it from a GGUF file.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pybatch.model.errors import ModelError
from pybatch.model.rope import RopeConfig

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


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
    max_position: int  # the context length
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


def config_from_hf(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None, *, name: str = "model"
) -> ModelConfig:
    """Reads a config.json, and the end-of-sequence ids of a generation_config.json.

    Raises ModelError for an architecture, activation or rope type that is not among those known.
    """
    architecture = (config.get("architectures") or [f"model_type {config.get('model_type')!r}"])[0]
    if architecture not in ARCHITECTURES:
        raise unknown_architecture(architecture, name)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "some method")
        raise ModelError(f"{name} is quantised by {method}; expected float32, float16 or bfloat16 weights")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ModelError(f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {activation!r} in {name}")

    num_heads = config["num_attention_heads"]
    default_head_dim = 128 if architecture == "Qwen3ForCausalLM" else config["hidden_size"] // num_heads
    head_dim = config.get("head_dim") or default_head_dim
    has_bias = bool(config.get("attention_bias", False))
    rope = RopeConfig.from_hf(config, head_dim)
    return ModelConfig(
        name=name,
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=rope,
        max_position=rope.context_length(config.get("max_position_embeddings", 2048)),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=has_bias or architecture == "Qwen2ForCausalLM",
        attention_out_bias=has_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_window=_sliding_windows(config, architecture),
        activation=ACTIVATIONS[activation],
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=merge_ids(config.get("eos_token_id"), (generation_config or {}).get("eos_token_id")),
    )


def unknown_architecture(architecture: str, name: str, known: tuple[str, ...] = ARCHITECTURES) -> ModelError:
    return ModelError(f"{name} is of architecture {architecture}, which is not known here; known: {', '.join(known)}")


def merge_ids(*ids: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """Every id once, in the order they come; each argument is an id, a list of ids or None."""
    flat = (i for group in ids if group is not None for i in ([group] if isinstance(group, int) else group))
    return tuple(dict.fromkeys(flat))


def _sliding_windows(config: Mapping[str, Any], architecture: str) -> tuple[int, ...]:
    layers: int = config["num_hidden_layers"]
    window: int = config.get("sliding_window") or 0
    if architecture == "MistralForCausalLM":
        return (window,) * layers
    if architecture == "LlamaForCausalLM" or not config.get("use_sliding_window", False):
        return (0,) * layers
    if config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else 0 for kind in config["layer_types"])
    first = config.get("max_window_layers", 28)
    return tuple(window if layer >= first else 0 for layer in range(layers))
