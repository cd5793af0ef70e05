"""Chips by their makers' data sheets, and what share of the ceilings pybatch's kernels reach."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

SHARES = Path(__file__).with_name("chip_shares.json")
KERNELS = {None: "dense", "int8-weight-only": "w8a16", "int8": "w8a8"}  # by what `quantization` is
GEN4, GEN5 = 32e9, 64e9  # bytes a second, of sixteen lanes of PCIe


@dataclass(frozen=True, slots=True)
class Chip:
    """Of one GPU. memory: bytes. bandwidth: bytes a second. bf16, int8, fp8: dense operations a second, without
    sparsity; 0: the chip has none. bus: bytes a second from the host, half of what data sheets have for both ways.
    source: the data sheet that has the figures."""

    name: str
    memory: float
    bandwidth: float
    bf16: float
    int8: float
    fp8: float
    bus: float
    source: str


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("H100-SXM", 80e9, 3.35e12, 989.5e12, 1979e12, 1979e12, GEN5, "NVIDIA H100 Tensor Core GPU Datasheet"),
        Chip("H100-PCIe", 80e9, 2.0e12, 756e12, 1513e12, 1513e12, GEN5, "NVIDIA H100 Tensor Core GPU Datasheet"),
        Chip("H200", 141e9, 4.8e12, 989.5e12, 1979e12, 1979e12, GEN5, "NVIDIA H200 Tensor Core GPU Datasheet"),
        Chip("B200", 180e9, 8.0e12, 2250e12, 4500e12, 4500e12, GEN5, "NVIDIA DGX B200 Datasheet, an eighth of it"),
        Chip("A100-80GB", 80e9, 2.039e12, 312e12, 624e12, 0, GEN4, "NVIDIA A100 Tensor Core GPU Datasheet, 80GB SXM"),
        Chip("A100-40GB", 40e9, 1.555e12, 312e12, 624e12, 0, GEN4, "NVIDIA A100 Tensor Core GPU Datasheet, 40GB SXM"),
        Chip("L40S", 48e9, 0.864e12, 362.05e12, 733e12, 733e12, GEN4, "NVIDIA L40S Datasheet"),
        Chip("L4", 24e9, 0.3e12, 121e12, 242.5e12, 242.5e12, GEN4, "NVIDIA L4 Tensor Core GPU Datasheet"),
        Chip("A10", 24e9, 0.6e12, 125e12, 250e12, 0, GEN4, "NVIDIA A10 Tensor Core GPU Datasheet"),
    )
}


def find_chip(name: str) -> Chip:
    """Whatever the case of its letters. Raises ValueError."""
    for known, chip in CHIPS.items():
        if known.lower() == name.lower():
            return chip
    raise ValueError(f"chip: expected one of {', '.join(CHIPS)}, got {name!r}")


@dataclass(frozen=True, slots=True)
class MatmulShares:
    """A product's time: seconds of a launch, weights' bytes at a share of the copy's bandwidth, and operations at a
    share of bf16's peak."""

    seconds: float
    bytes: float
    arithmetic: float


@dataclass(frozen=True, slots=True)
class Shares:
    """Measured on a chip by bench/chip_shares.py. copy, bf16: what a copy and a large product of cuBLAS reach there, in
    shares of the data sheet's figures. matmuls: by kernel. decode_attention: of the copy's bandwidth, by the KV type.
    prefill_attention: of bf16's peak. layer_seconds: what the other kernels of a layer take."""

    chip: str
    date: str
    copy: float
    bf16: float
    matmuls: Mapping[str, MatmulShares]
    decode_attention: Mapping[str, float]
    prefill_attention: float
    layer_seconds: float

    @classmethod
    def of(cls, fields: Mapping[str, Any], chip: Chip) -> Self:
        """chip: on which they were measured."""
        matmuls = {name: MatmulShares(**each) for name, each in fields["matmuls"].items()}
        few, many = matmuls["w8a16"], matmuls["w8a8"]
        if not many.bytes:  # W8A8 was measured with many rows only: its bytes are W8A16's
            matmuls["w8a8"] = MatmulShares(max(many.seconds, few.seconds), few.bytes, many.arithmetic)
        ceilings = fields["ceilings"]
        return cls(
            fields["chip"],
            fields["date"][:10],
            ceilings["copy"] / chip.bandwidth,
            ceilings["bf16"] / chip.bf16,
            matmuls,
            fields["decode_attention"],
            fields["prefill_attention"],
            fields["layer_seconds"],
        )


@cache
def measured_shares() -> Shares:
    """Of an H100 SXM; other chips are taken to reach the same."""
    return Shares.of(json.loads(SHARES.read_text()), CHIPS["H100-SXM"])
