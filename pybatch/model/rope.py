"""The rotary position table (RoPE, Su et al. 2021) and the ways of stretching it to longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pybatch.model.errors import ModelError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """kind: default; linear (positions divided by factor); dynamic (NTK-aware base, taken for the length of the table,
    so that a token's rotation does not depend on how long its sequence grows); llama3 (Llama 3.1's frequency bands);
    yarn (Peng et al. 2023)."""

    rotary_dim: int  # the first elements of each head, which turn
    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0  # the context length before stretching; dynamic, llama3 and yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    frequency_divisors: tuple[float, ...] = ()  # per frequency, as GGUF files give llama3 and longrope scaling

    @staticmethod
    def from_hf(config: Mapping[str, Any], head_dim: int) -> RopeConfig:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind not in KINDS:
            raise ModelError(f"rope_type: expected one of {', '.join(KINDS)}, got {kind!r}")
        max_position = config.get("max_position_embeddings", 2048)
        original = rope.get("original_max_position_embeddings") or max_position
        partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        factor = rope.get("factor") or (max_position / original if kind == "yarn" else 1.0)
        return RopeConfig(
            kind=kind,
            rotary_dim=int(head_dim * partial),
            theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            factor=float(factor),
            original_max_position=max_position if kind == "dynamic" else original,
            low_freq_factor=rope.get("low_freq_factor", 1.0),
            high_freq_factor=rope.get("high_freq_factor", 4.0),
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            truncate=rope.get("truncate", True),
            attention_factor=_yarn_attention_factor(rope, factor) if kind == "yarn" else 1.0,
        )

    def context_length(self, max_position: int) -> int:
        """The longest context that this stretching is made for, given the config's max_position_embeddings."""
        if self.kind in ("linear", "dynamic"):
            return int(max_position * self.factor)
        if self.kind == "yarn":
            return max(max_position, int(self.original_max_position * self.factor))
        return max_position


def rotary_table(rope: RopeConfig, length: int) -> Tensor:
    """[length, rotary_dim] float32: cos of each position's angles in the first half of the columns, sin in the rest."""
    frequencies = _frequencies(rope, length)
    if rope.frequency_divisors:
        frequencies = frequencies / torch.tensor(rope.frequency_divisors)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.cat([angles.cos(), angles.sin()], dim=1) * rope.attention_factor


def _frequencies(rope: RopeConfig, length: int) -> Tensor:
    dim, theta = rope.rotary_dim, rope.theta
    if rope.kind == "dynamic" and length > rope.original_max_position:
        theta *= (rope.factor * length / rope.original_max_position - (rope.factor - 1)) ** (dim / (dim - 2))
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    match rope.kind:
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            return _llama3(rope, frequencies)
        case "yarn":
            return _yarn(rope, frequencies)
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


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)
