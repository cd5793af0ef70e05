"""Attention against float64, alone and in a batch, whole and in pieces. test_mutations.py has the other caches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simt import probes
from simt.device import SimtOps
from simt.suites import OPS


@pytest.mark.parametrize("probe", [probes.attention_int8, probes.attention_simple])
def test_attention(probe: Callable[[SimtOps], None]) -> None:
    probe(OPS)
