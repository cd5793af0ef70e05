"""A GGUF file's metadata, as the fields of a config.json: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

from __future__ import annotations

import math
from typing import Any

from pybatch.model.checkpoints.gguf_file import FLOATS, GGUFFile
from pybatch.model.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH
from pybatch.model.errors import ModelError
from pybatch.model.families.family import GGUFFamily
from pybatch.model.families.source import Source
from pybatch.model.fields import Fields, short
from pybatch.model.rope import MAX_POSITIONS, RopeConfig, yarn_scale
from pybatch.model.unread_keys import check_unread_keys

# Names in config.json, and what GGUF calls them behind the architecture's name.
KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
}
PATTERN = "attention.sliding_window_pattern"  # of each layer whether it has a window, or a period
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
OTHERS = frozenset(
    [
        "vocab_size",
        "use_parallel_residual",  # which the tensors tell
        "attention.value_length",
        "attention.value_length_swa",
        "attention.temperature_scale",
        "rope.dimension_count",
        "rope.dimension_sections",  # of positions of images
        "rope.dimension_count_swa",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "ssm.inner_size",
        "rope.scaling.yarn_log_multiplier",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    ]
)


class GGUFSource(Source):
    def __init__(self, file: GGUFFile, family: GGUFFamily) -> None:
        self._file, self._family = file, family
        own = f"{family.architecture}."
        self._own = {
            key.removeprefix(own): _of_all_layers(value) for key, value in file.metadata.items() if key.startswith(own)
        }
        near = self._own.get(PATTERN)
        pattern = "layer_types" if isinstance(near, list) else "sliding_window_pattern"
        self._keys = {**KEYS, **family.keys, pattern: PATTERN}
        values: dict[str, Any] = {**family.constants, **self._shape()}
        values |= {key: self._own[name] for key, name in self._keys.items() if name in self._own}
        if isinstance(near, list):
            values["layer_types"] = ["sliding_attention" if window else "full_attention" for window in near]
        super().__init__(values, str(file.path), names={key: own + name for key, name in self._keys.items()})

    def _shape(self) -> dict[str, Any]:
        """What always is there, or follows from it, checked; and what only the tensors tell."""
        own = f"{self._family.architecture}."
        alike = {f"{own}{key}": value for key, value in self._own.items()}
        fields = Fields({**self._file.metadata, **alike}, str(self._file.path), own)
        fields.integer("block_count", high=MAX_LAYERS)
        hidden = fields.integer("embedding_length", high=MAX_WIDTH)
        heads = fields.integer("attention.head_count", high=MAX_HEADS)
        head_dim = fields.integer("attention.key_length", hidden // heads, high=MAX_WIDTH)
        latent = "attention.kv_lora_rank" in self._own
        if not latent and fields.integer("attention.value_length", head_dim, high=MAX_WIDTH) != head_dim:
            raise ModelError(f"{self._file.path}: expected attention.value_length to be that of keys, {head_dim}")
        fields.integer("context_length", high=MAX_POSITIONS)
        if "attention.layer_norm_epsilon" not in fields:
            fields.number("attention.layer_norm_rms_epsilon", high=1.0)
        self._fields = fields
        tensors = self._file.tensors
        own_keys = [name for name in tensors if name.endswith(".attn_k.weight")]
        of_tokens = tensors.get("per_layer_token_embd.weight")
        value_heads = fields.integer("ssm.time_step_rank", 1, high=MAX_HEADS)  # of gated delta nets
        return {
            "attention_k_eq_v": any(name.replace("attn_k", "attn_v") not in tensors for name in own_keys),
            "qk_layernorm": "blk.0.attn_q_norm.weight" in tensors,
            "use_qk_norm": "blk.0.attn_q_norm.weight" in tensors,
            "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
            "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in tensors else 1,
            "linear_value_head_dim": fields.integer("ssm.inner_size", 0, low=0, high=MAX_WIDTH) // value_heads,
            "enable_moe_block": bool(self._own.get("expert_count")),
            "vocab_size_per_layer_input": 0 if of_tokens is None else of_tokens.shape[0],
            "head_dim": head_dim,
            "num_key_value_heads": heads,
            "sliding_window": 0,
            "tie_word_embeddings": "output.weight" not in self._file.tensors,
        }

    def check_unread(self, head_dim: int) -> None:
        """Raises ModelError for a key that was not asked for and changes the numbers."""
        read = {self._keys[key] for key in self.asked if key in self._keys} | OTHERS
        check_unread_keys(self._own, read, head_dim, self.where)

    def num_layers(self) -> int:
        """Without those at the end that draft tokens (multi-token prediction)."""
        drafting = self._fields.integer("nextn_predict_layers", 0, low=0, high=super().num_layers() - 1)
        return super().num_layers() - drafting

    def longest(self, rope: RopeConfig, context: int) -> int:
        return context

    def rope_of_kind(self, kind: str, head_dim: int, default_context: int, theta: float) -> RopeConfig:
        """Layers with windows have their own base, and are not stretched."""
        if kind == "full_attention":
            return self.rope(head_dim, default_context)
        base = self._fields.number("rope.freq_base_swa", theta, above=1.0)
        return RopeConfig(rotary_dim=head_dim, theta=base, original_max_position=default_context)

    def rope(
        self,
        head_dim: int,
        default_context: int,
        *,
        theta: float = 10000.0,
        partial: float | None = None,
        sections: bool = False,
    ) -> RopeConfig:
        """As llama.cpp reads it: a factor without a type is linear, scale_linear is an older name of the factor, a
        factor of 0 is none, and attn_factor counts for every type. Tensors of factors are longrope, whatever the type.
        What the file does not say is not what a config.json would leave out."""
        fields, where = self._fields, self.where
        kind = fields.text("rope.scaling.type", "linear")
        if LONG in self._file.tensors:
            kind = "longrope"
        elif kind not in ("none", "linear", "yarn"):
            raise ModelError(f"{where}: rope.scaling.type: expected none, linear or yarn, got {short(kind)}")
        name = "rope.scaling.factor" if "rope.scaling.factor" in fields else "rope.scale_linear"
        factor = 1.0
        if fields.get(name) != 0 and kind != "none":
            factor = fields.number(name, 1.0, high=1e6)
        rotary_dim = fields.integer("rope.dimension_count", head_dim, high=head_dim)
        if self._family.architecture == "llama" and rotary_dim != head_dim:
            raise ModelError(
                f"{where}: rope.dimension_count: expected {head_dim}, the size of a head, got {rotary_dim}"
            )
        stretch = fields.number("rope.scaling.attn_factor", 1.0)
        if kind == "yarn":
            weight = fields.number("rope.scaling.yarn_log_multiplier", 0.0, above=-1.0)
            stretch *= yarn_scale(factor, 1.0) / (yarn_scale(factor, weight) if weight else 1.0)
        if self._family.architecture == "deepseek2":  # whose scale is of scores
            stretch = 1.0
        original = fields.integer("rope.scaling.original_context_length", default_context, low=0, high=MAX_POSITIONS)
        rope = RopeConfig(
            kind="default" if factor == 1.0 and kind not in ("yarn", "longrope") else kind,
            rotary_dim=rotary_dim,
            theta=fields.number("rope.freq_base", 10000.0, above=1.0),
            factor=factor,
            original_max_position=original or default_context,
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
            truncate=self.flag("truncate", True),
            attention_factor=stretch,
            query_beta=fields.number("attention.temperature_scale", 0.0),
            frequency_divisors=_frequency_factors(self._file, "rope_freqs.weight", rotary_dim),
            short_factors=_frequency_factors(self._file, SHORT, rotary_dim),
            long_factors=_frequency_factors(self._file, LONG, rotary_dim),
        )
        rope.check(where)
        return rope

    def yarn_scale(self) -> float:
        """The file has a tenth of the weight."""
        weight = 10 * self._fields.number("rope.scaling.yarn_log_multiplier", 0.0, above=-1.0)
        return yarn_scale(self._fields.number("rope.scaling.factor", 1.0), weight)


def _of_all_layers(value: Any) -> Any:
    """The one number of a list that has it for every layer."""
    is_list = isinstance(value, list) and len(value) > 0 and type(value[0]) is int
    return value[0] if is_list and value == value[:1] * len(value) else value


def _frequency_factors(file: GGUFFile, name: str, rotary_dim: int) -> tuple[float, ...]:
    info = file.tensors.get(name)
    if info is None:
        return ()
    divisors = file.rows(name)[:].tolist() if info.kind in FLOATS else []
    if info.shape != (rotary_dim // 2,) or not all(math.isfinite(each) and each > 0 for each in divisors):
        raise ModelError(
            f"{file.path}: {name}: expected {rotary_dim // 2} positive numbers as F32, "
            f"got {short(list(info.shape))} as {info.kind.name}"
        )
    return tuple(divisors)
