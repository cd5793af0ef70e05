"""Where a family reads its shape from: a config.json, or a GGUF file's metadata under the same names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from pybatch.model.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.rope import MAX_POSITIONS, RopeConfig, yarn_scale

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu2": "relu2",
    "xielu": "xielu",
}
GATED, PLAIN = ("silu", "gelu_tanh"), ("gelu", "gelu_tanh", "relu2", "xielu")
LAYER_TYPES = ("full_attention", "sliding_attention")


class Source(Fields, ABC):
    """Fields under the names of config.json, with what is read in the same way for most families."""

    @abstractmethod
    def rope(
        self,
        head_dim: int,
        default_context: int,
        *,
        theta: float = 10000.0,
        partial: float | None = None,
        sections: bool = False,
    ) -> RopeConfig:
        """theta: where the source says nothing. partial: likewise, of heads that turn; None: the family's heads turn
        whole, and a config.json that says otherwise is refused. sections: it may name parts of heads for positions of
        images, which are nothing to text."""

    @abstractmethod
    def rope_of_kind(self, kind: str, head_dim: int, default_context: int, theta: float) -> RopeConfig:
        """Of layers of this one of LAYER_TYPES, in families whose kinds rotate differently. theta: where there is no
        base."""

    @abstractmethod
    def yarn_scale(self) -> float:
        """By which queries and keys are multiplied beside YaRN, in models that say so (DeepSeek's mscale_all_dim)."""

    def num_layers(self) -> int:
        return self.integer("num_hidden_layers", high=MAX_LAYERS)

    def hidden_size(self) -> int:
        return self.integer("hidden_size", high=MAX_WIDTH)

    def num_heads(self) -> int:
        return self.integer("num_attention_heads", high=MAX_HEADS)

    def num_kv_heads(self, absent: int | None = None) -> int:
        """Where it is null as many as heads; absent: where the key is not there, None: likewise."""
        heads = self.num_heads()
        default = heads if absent is None or "num_key_value_heads" in self else absent
        return self.integer("num_key_value_heads", default, high=MAX_HEADS, nullable=True)

    def head_dim(self, absent: int | None = None) -> int:
        """absent: where there is none, None: hidden_size / num_attention_heads."""
        default = self.hidden_size() // self.num_heads() if absent is None else absent
        return self.integer("head_dim", default, high=MAX_WIDTH, nullable=True)

    def context(self, absent: int) -> int:
        return self.integer("max_position_embeddings", absent, high=MAX_POSITIONS)

    def mlp_width(self, absent: int | None = None) -> int:
        """absent: where there is none."""
        if absent is not None and self.get("intermediate_size") is None:
            return absent
        return self.integer("intermediate_size", high=MAX_WIDTH)

    def integer_of_layer(self, key: str, index: int, absent: int, high: int) -> int:
        """The one of all layers, or out of a list of them."""
        values = self.get(key)
        if not isinstance(values, list):
            return self.integer(key, absent, high=high)
        if len(values) != self.num_layers():
            raise ModelError(f"{self.where}: {self.name(key)}: expected one a layer, got {len(values)}")
        return Fields({key: values[index]}, f"{self.where}, layer {index}").integer(key, high=high)

    def norm_eps(self, key: str = "rms_norm_eps", absent: float = 1e-6) -> float:
        return self.number(key, absent, high=1.0)

    def activation(self, key: str = "hidden_act", absent: str = "silu", *, gated: bool = True) -> str:
        """gated: whether a gate has it, and another product is multiplied by that."""
        name = self.text(key, absent)
        known = [each for each, ours in ACTIVATIONS.items() if ours in (GATED if gated else PLAIN)]
        if name not in known:
            raise ModelError(f"{self.where}: {self.name(key)}: expected one of {', '.join(known)}, got {short(name)}")
        return ACTIVATIONS[name]

    def window(self, absent: int = 0) -> int:
        """sliding_window, 0 if it is null; absent: where the key is not there."""
        if "sliding_window" not in self:
            return absent
        return self.integer("sliding_window", None, high=MAX_POSITIONS, low=0, nullable=True) or 0

    def layer_types(self, layers: int, window: int, known: Sequence[str] = LAYER_TYPES) -> list[str] | None:
        """One of the known a layer; None if the key is not there."""
        kinds = self.get("layer_types")
        if kinds is None:
            return None
        if not isinstance(kinds, list) or not all(kind in known for kind in kinds):
            raise ModelError(f"{self.where}: layer_types: expected a list of {', '.join(known)}, got {short(kinds)}")
        if len(kinds) != layers:
            raise ModelError(f"{self.where}: layer_types: expected {layers}, one a layer, got {len(kinds)}")
        if "sliding_attention" in kinds and not window:
            raise ModelError(f"{self.where}: layer_types names sliding_attention, but there is no sliding_window")
        return kinds

    def expect_layer_types(self, windows: Sequence[int]) -> None:
        """Raises ModelError where layer_types, which is not read, says anything else than these windows."""
        kinds = self.layer_types(len(windows), max(windows))
        if kinds and [kind == "sliding_attention" for kind in kinds] != [window > 0 for window in windows]:
            raise ModelError(f"{self.where}: layer_types does not agree with sliding_window, which decides here")

    def longest(self, rope: RopeConfig, context: int) -> int:
        """The longest context that the rotation is made for."""
        return min(rope.context_length(context), MAX_POSITIONS)


class HFSource(Source):
    """A config.json. keys: what it calls what is read under other names here."""

    def __init__(self, config: Mapping[str, Any], where: str, keys: Mapping[str, str] | None = None) -> None:
        self._keys = keys or {}
        theirs = {key: config[name] for key, name in self._keys.items() if name in config}
        super().__init__({**config, **theirs}, where, names=self._keys)

    @property
    def read(self) -> set[str]:
        """The keys of the file that were asked for."""
        return self.asked | {self._keys[key] for key in self.asked if key in self._keys}

    def rope(
        self,
        head_dim: int,
        default_context: int,
        *,
        theta: float = 10000.0,
        partial: float | None = None,
        sections: bool = False,
    ) -> RopeConfig:
        turning = 1.0 if partial is None else partial
        found = RopeConfig.from_hf(self, head_dim, default_context, theta=theta, partial=turning, sections=sections)
        return self._of_whole_heads(found, head_dim) if partial is None else found

    def rope_of_kind(self, kind: str, head_dim: int, default_context: int, theta: float) -> RopeConfig:
        """Of the kind in `rope_parameters` (transformers 5), or, before, `rope_theta` and `rope_scaling` of layers that
        see all, and `rope_local_base_freq` of those with windows."""
        sees_all = kind == "full_attention"
        of_kinds = Fields(self.mapping("rope_parameters"), f"rope_parameters in {self.where}")
        base = self.number("rope_theta" if sees_all else "rope_local_base_freq", theta, above=1.0)
        rope = {"rope_theta": base, **of_kinds.mapping(kind)}
        scaling = self.mapping("rope_scaling")
        fields = Fields({"rope_parameters": {**rope, **scaling} if sees_all else rope}, f"{kind} in {self.where}")
        return self._of_whole_heads(RopeConfig.from_hf(fields, head_dim, default_context), head_dim)

    def _of_whole_heads(self, rope: RopeConfig, head_dim: int) -> RopeConfig:
        if rope.rotary_dim != head_dim:
            raise ModelError(f"{self.where}: partial_rotary_factor: expected 1: heads turn whole in this family")
        return rope

    def yarn_scale(self) -> float:
        rope = Fields(self.mapping("rope_scaling") or self.mapping("rope_parameters"), self.where)
        return yarn_scale(rope.number("factor", 1.0), rope.number("mscale_all_dim", 0.0, above=-1.0, nullable=True))
