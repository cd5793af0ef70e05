"""A part of the run that engine.stateful makes by itself."""

from __future__ import annotations

from pathlib import Path

from engine.stateful import Catalogue, machine_on, run_machine

from pybatch.model import load_model


def test_random_events_lose_no_block_and_change_no_bit(tiny_model: Path) -> None:
    machine = machine_on(Catalogue(load_model(tiny_model)))
    counts = machine.counts
    for seed in range(8):
        run_machine(machine, 15, seed)
        if seed > 0 and min(vars(counts).values()) > 0:  # what happens depends on how long things take
            break
    assert min(vars(counts).values()) > 0, counts
