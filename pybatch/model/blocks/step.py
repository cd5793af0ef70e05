"""What a step's layers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pybatch.model.batch import ForwardBatch
from pybatch.model.buffers import Buffers
from pybatch.model.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class Step:
    batch: ForwardBatch
    buffers: Buffers
    rotary: Mapping[RopeConfig, Tensor]  # see rope.rotary_table
    query_scales: Mapping[RopeConfig, Tensor]  # see rope.query_scale
