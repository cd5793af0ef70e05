from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pybatch.engine import Engine, EngineConfig
from pybatch.model import load_model
from pybatch.tune import sweep as module
from pybatch.tune.sweep import Ceilings, SweepPoint, bound, knee, sweep

POINT = SweepPoint(1, 1.0, 50, 100, 0.1, 0.1, 0.1, 0.1, 1, 10, 10, 0, 0.8, 0.1)


def point(size: int, rate: float, **changes: float) -> SweepPoint:
    return replace(POINT, max_num_seqs=size, total_rate=rate, **{"sequences": size, **changes})  # type: ignore[arg-type]


def test_each_size_is_run_by_engines_with_the_same_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED", 1 << 20)
    decoder = load_model(tiny_model, skip_tokenizer=True).decoder
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64, max_num_seqs=4))
    ceilings = Ceilings.measured(torch.device("cpu"))
    assert ceilings.bandwidth > 1e8
    assert ceilings.arithmetic > 1e8
    points = sweep(engine, None, [1, 2, 4], 10, 6, ceilings)
    assert [each.max_num_seqs for each in points] == [1, 2, 4]
    for each in points:
        assert each.output_rate * each.seconds == pytest.approx(2 * each.max_num_seqs * 6)
        assert each.sequences == pytest.approx(each.max_num_seqs)
        assert each.of_bandwidth > 0
        assert each.of_arithmetic > 0
        assert each.peak_kv_bytes == each.max_num_seqs * engine.kv_block_bytes
    assert not engine.has_unfinished()


def test_the_knee_is_where_twice_as_much_brings_nothing() -> None:
    points = [point(1, 100), point(2, 190), point(4, 300), point(8, 310), point(16, 312)]
    assert knee(points) == (4, "bytes, at 80% of the bandwidth")
    assert knee(points[:3]) == (4, "none found: the largest size is the fastest")


def test_the_reason_is_what_is_nearest_to_its_ceiling() -> None:
    assert bound(point(8, 1, of_arithmetic=0.9)).startswith("arithmetic, at 90%")
    assert bound(point(8, 1, of_bandwidth=0.1)).startswith("overhead: bytes are 10%")
    assert bound(point(8, 1, preemptions=3)) == "the KV cache holds no more"
    assert bound(point(8, 1, sequences=4)) == "the KV cache holds no more"
