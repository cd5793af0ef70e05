"""The rotary position table (RoPE, Su et al. 2021) and the ways of stretching it to longer contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
MAX_POSITIONS = 1 << 28
ROPE_KEYS = frozenset(
    [
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
        "beta_fast",
        "beta_slow",
        "truncate",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "partial_rotary_factor",
        "finetuned",
        "short_factor",
        "long_factor",
        "alpha",
        "llama_4_scaling_beta",
        "max_position_embeddings",
    ]
)

# How positions in time, height and width turn parts of a head: in text the three are one number.
SECTION_KEYS = {"mrope_section", "mrope_interleaved"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """How positions turn into angles.

    kind: "default"; "linear": positions divided by factor; "dynamic": NTK-aware, the base grows with the length;
    "llama3": Llama 3.1's frequency bands; "yarn": Peng et al. 2023; "longrope": Ding et al. 2024, each frequency
    divided by a factor of its own; "proportional": only the first of all a head's frequencies turn; NO_ROPE, which no
    config names: nothing turns.

    A dynamic or longrope table is made for one length, and all its rows have that length's base, or that length's
    factors: the rotation of a token may depend on its position alone, never on how long its sequence has grown, and
    keys of two bases cannot be compared. Up to the original context the base is the plain one and the factors are the
    short ones, as in transformers; only a longer table is stretched, so the context is the original one unless a longer
    max_model_len is asked for.
    """

    rotary_dim: int  # the first elements of each head, which turn
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0  # the context length before stretching; all but default and linear
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # yarn and longrope: multiplies cos and sin
    short_factors: tuple[float, ...] = ()  # longrope, per frequency
    long_factors: tuple[float, ...] = ()
    turning: int = 0  # proportional: how many frequencies turn
    query_beta: float = 0.0  # of query_scale
    frequency_divisors: tuple[float, ...] = ()  # per frequency, as GGUF files give llama3 and longrope scaling

    @staticmethod
    def from_hf(
        fields: Fields,
        head_dim: int,
        default_context: int,
        *,
        theta: float = 10000.0,
        partial: float = 1.0,
        sections: bool = False,
    ) -> RopeConfig:
        """Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before). As in transformers,
        `rope_scaling` stands in place of all of `rope_parameters` where a config has both, and a top-level
        `original_max_position_embeddings` comes before that of the scaling. theta, partial: of heads that turn, where
        the config says nothing."""
        max_position = fields.integer("max_position_embeddings", default_context, high=MAX_POSITIONS)
        name = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
        fields.asked |= {"rope_parameters", "original_max_position_embeddings"}
        rope = Fields(fields.mapping(name), f"{name} in {fields.where}")
        kind = rope.text("rope_type", rope.text("type", "default"))
        before_named = fields.get("model_type") == "phi3" and kind in ("su", "yarn")  # what Phi-3 called it at first
        if before_named and "long_factor" in rope:
            kind = "longrope"
        if kind not in KINDS:
            raise ModelError(f"{rope.where}: rope_type: expected one of {', '.join(KINDS)}, got {short(kind)}")
        unread = sorted(set(fields.mapping(name)) - ROPE_KEYS - (SECTION_KEYS if sections else set()))
        if unread:
            raise ModelError(f"{rope.where}: {unread[0]} changes the rotation of positions and is not known here")

        original = rope.integer("original_max_position_embeddings", max_position, high=MAX_POSITIONS, nullable=True)
        if kind != "dynamic":
            original = fields.integer("original_max_position_embeddings", original, high=MAX_POSITIONS, nullable=True)
        factor = rope.number("factor", None, high=1e6, nullable=True)
        if factor is None:
            if kind in ("linear", "dynamic", "llama3"):
                raise ModelError(f"{rope.where}: rope_type {kind} needs a factor")
            factor = max_position / original if kind in ("yarn", "longrope") else 1.0
        partial = fields.number("partial_rotary_factor", partial, high=1.0, nullable=True)
        partial = rope.number("partial_rotary_factor", partial, high=1.0, nullable=True)
        rotary_dim = head_dim if kind == "proportional" else int(head_dim * partial)
        long = kind == "longrope"
        theta = rope.number("rope_theta", fields.number("rope_theta", theta, above=1.0), above=1.0)
        alpha = rope.number("alpha", None, high=1e9, nullable=True)
        if kind == "dynamic" and alpha is not None:  # Hunyuan's: the base grows once, whatever the length
            kind, theta = "default", theta * alpha ** (head_dim / (head_dim - 2))
        found = RopeConfig(
            kind=kind,
            rotary_dim=rotary_dim,
            theta=theta,
            factor=factor,
            original_max_position=max_position if kind == "dynamic" else original,
            low_freq_factor=rope.number("low_freq_factor", 1.0),
            high_freq_factor=rope.number("high_freq_factor", 4.0),
            beta_fast=rope.number("beta_fast", 32.0, nullable=True),
            beta_slow=rope.number("beta_slow", 1.0, nullable=True),
            truncate=rope.flag("truncate", True),
            attention_factor=_attention_factor(kind, rope, factor, original),
            short_factors=rope.numbers("short_factor", rotary_dim // 2) if long else (),
            long_factors=rope.numbers("long_factor", rotary_dim // 2) if long else (),
            turning=int(partial * head_dim // 2) if kind == "proportional" else 0,
            query_beta=rope.number("llama_4_scaling_beta", 0.0, nullable=True),
        )
        found.check(rope.where)
        return found

    def check(self, where: str) -> None:
        """Raises ModelError for numbers that give no rotation."""
        least = 4 if self.kind == "dynamic" else 2
        if self.rotary_dim < least or self.rotary_dim % 2:
            raise ModelError(
                f"{where}: expected an even number of at least {least} elements to turn, got {self.rotary_dim}"
            )
        if self.kind == "longrope" and len(self.short_factors) != len(self.long_factors):
            raise ModelError(f"{where}: expected short and long factors of longrope, got only one kind")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ModelError(
                f"{where}: expected low_freq_factor below high_freq_factor, "
                f"got {self.low_freq_factor:g} and {self.high_freq_factor:g}"
            )

    def context_length(self, max_position: int) -> int:
        """The longest context that this stretching is made for, given the config's max_position_embeddings."""
        if self.kind in ("linear", "dynamic"):
            return max(max_position, int(max_position * self.factor))
        if self.kind == "yarn":
            return max(max_position, int(self.original_max_position * self.factor))
        return max_position

    def plain_length(self, longest: int) -> int:
        """The context where no length is asked for, out of the longest there is."""
        return min(self.original_max_position, longest) if self.depends_on_length else longest

    @property
    def depends_on_length(self) -> bool:
        return self.kind in ("dynamic", "longrope")


NO_ROPE = RopeConfig(rotary_dim=2, kind="none")  # layers without positions


def rotary_table(rope: RopeConfig, length: int) -> Tensor:
    """[length, rotary_dim] float32: cos of each position's angles in the first half of the columns, sin in the rest."""
    if rope.kind == "none":
        return torch.tensor([[1.0, 0.0]]).repeat(length, 1)
    frequencies = _frequencies(rope, length)
    if rope.frequency_divisors:
        frequencies = frequencies / torch.tensor(rope.frequency_divisors, dtype=torch.float32)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1) * rope.attention_factor


def query_scale(rope: RopeConfig, length: int) -> Tensor | None:
    """[length] float32, by which the queries of a position are multiplied: 1 + beta * log(1 + how often the original
    context is behind it) (Llama 4's temperature tuning). None: by nothing."""
    if not rope.query_beta:
        return None
    behind = torch.arange(length, dtype=torch.float32).div(rope.original_max_position, rounding_mode="floor")
    return 1 + rope.query_beta * behind.log1p()


def _frequencies(rope: RopeConfig, length: int) -> Tensor:
    dim, theta = rope.rotary_dim, rope.theta
    if rope.kind == "dynamic" and length > rope.original_max_position:
        theta *= (rope.factor * length / rope.original_max_position - (rope.factor - 1)) ** (dim / (dim - 2))
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    match rope.kind:
        case "linear":
            return frequencies / rope.factor
        case "proportional":
            return torch.where(torch.arange(dim // 2) < rope.turning, frequencies / rope.factor, 0.0)
        case "llama3":
            return _llama3(rope, frequencies)
        case "yarn":
            return _yarn(rope, frequencies)
        case "longrope":
            factors = rope.long_factors if length > rope.original_max_position else rope.short_factors
            return frequencies / torch.tensor(factors, dtype=torch.float32)
    return frequencies


def _llama3(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended by how often they turn in the old context."""
    turns = rope.original_max_position * frequencies / (2 * math.pi)
    kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope.factor)


def _yarn(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """As llama3, but the blend is linear in the index of the frequency."""

    def index_of(turns: float) -> float:
        wave = rope.original_max_position / (turns * 2 * math.pi)
        return rope.rotary_dim * math.log(wave) / (2 * math.log(rope.theta))

    low, high = index_of(rope.beta_fast), index_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    ramp = (torch.arange(len(frequencies), dtype=torch.float32) - low) / max(high - low, 1e-3)
    stretched = ramp.clamp(0, 1)
    return frequencies / rope.factor * stretched + frequencies * (1 - stretched)


def _attention_factor(kind: str, rope: Fields, factor: float, original: int) -> float:
    if kind not in ("yarn", "longrope"):
        return 1.0
    given = rope.number("attention_factor", None, nullable=True)
    if given is not None:
        return given
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0

    mscale, of_all = (rope.number(key, 0.0, above=-1.0, nullable=True) for key in ("mscale", "mscale_all_dim"))
    return yarn_scale(factor, mscale) / yarn_scale(factor, of_all) if mscale and of_all else yarn_scale(factor, 1.0)


def yarn_scale(factor: float, weight: float) -> float:
    """By which YaRN multiplies queries and keys, times a weight of the logarithm."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
