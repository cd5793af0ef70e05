from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pybatch.engine import Engine, EngineConfig
from pybatch.model import load_model
from pybatch.tune import ceilings as module
from pybatch.tune import sweep as sweeping
from pybatch.tune.ceilings import Ceilings
from pybatch.tune.sweep import Sweep, SweepPoint, bound, joules_used, measure
from pybatch.tune.workload import Lengths, of_lengths

POINT = SweepPoint(1, 1.0, 50, 100, 0.1, 0.1, 0.1, 0.1, 1, 10, 10, 0, 0.8, 0.1)


def point(size: int, rate: float, **changes: float) -> SweepPoint:
    return replace(POINT, max_num_seqs=size, total_rate=rate, **{"sequences": size, **changes})  # type: ignore[arg-type]


def sweep(*points: SweepPoint) -> Sweep:
    return Sweep("int8", "auto", "continuous", points)


def test_each_size_is_run_by_engines_with_the_same_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED", 1 << 20)
    decoder = load_model(tiny_model, skip_tokenizer=True).decoder
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=64, max_num_seqs=4))
    ceilings = Ceilings.measured(torch.device("cpu"))
    assert ceilings.bandwidth > 1e8
    assert ceilings.int8 >= ceilings.arithmetic > 1e8
    rows = of_lengths(12, Lengths.parse("input_tokens", 10), Lengths.parse("output_tokens", 6))
    points = [measure(engine, None, size, rows, ceilings, "static") for size in (1, 2, 4)]
    assert [each.max_num_seqs for each in points] == [1, 2, 4]
    for each in points:
        assert each.output_rate * each.seconds == pytest.approx(2 * each.max_num_seqs * 6)
        assert each.sequences == pytest.approx(each.max_num_seqs)
        assert each.of_bandwidth > 0
        assert each.of_arithmetic > 0
        assert each.peak_kv_bytes == each.max_num_seqs * engine.kv_block_bytes
    assert not engine.has_unfinished()


def test_energy_is_told_where_the_machine_counts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "gpu_loads", lambda: [])
    monkeypatch.setattr(sweeping, "energy", lambda: {"package-0": 5.0, "package-1": 2.0, "dram": 100.0})
    assert joules_used() == 7
    monkeypatch.setattr(sweeping, "energy", lambda: {})
    assert joules_used() is None
    assert replace(POINT, joules=50.0).tokens_per_joule == 2


def test_the_knee_is_where_twice_as_much_brings_nothing() -> None:
    points = [point(1, 100), point(2, 190), point(4, 300), point(8, 310), point(16, 312)]
    assert sweep(*points).knee == (4, "bytes, at 80% of the bandwidth")
    assert sweep(*points[:3]).knee == (4, "none found: the largest size is the fastest")
    assert sweep(point(1, 100), point(16, 140), point(32, 200)).knee[0] == 1  # four doublings


def test_the_ranges_are_shares_of_the_most() -> None:
    made = sweep(point(1, 100), point(16, 300), point(32, 350), point(64, 400), point(128, 390, tpot_p50=0.4)).ranges()
    assert [(each["least"], each["most"]) for each in made.values()] == [(0.25, 0.75), (0.875, 1), (0.975, 0.975)]
    assert made["above 64"]["tpot_most"] == 0.4
    assert list(sweep(point(1, 100)).ranges()) == ["1-16"]


def test_the_reason_is_what_is_nearest_to_its_ceiling() -> None:
    assert bound(point(8, 1, of_arithmetic=0.9)).startswith("arithmetic, at 90%")
    assert bound(point(8, 1, of_bandwidth=0.1)).startswith("overhead: bytes are 10%")
    assert bound(point(8, 1, preemptions=3)) == "the KV cache holds no more"
    assert bound(point(8, 1, sequences=4)) == "the KV cache holds no more"
