from __future__ import annotations

import pytest
from engine.runs import MakeEngine


def test_memory_for_no_block_says_what_to_set(make_engine: MakeEngine) -> None:
    with pytest.raises(ValueError, match=r"memory_utilization: 1e-12 .* less than one KV block of [\d,]+ bytes; raise"):
        make_engine(num_kv_blocks=None, memory_utilization=1e-12)
