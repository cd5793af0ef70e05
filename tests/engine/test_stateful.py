"""A part of the run that engine.stateful makes by itself."""

from __future__ import annotations

from pathlib import Path

from engine.stateful import Catalogue, machine_on, run_machine, save_recurrent_model


def test_random_events_lose_no_block_and_change_no_bit(tiny_model: Path) -> None:
    machine = machine_on(Catalogue(tiny_model))
    counts = machine.counts
    for seed in range(4):
        run_machine(machine, 5, seed)
    assert counts.ended > 100, counts
    assert min(counts.adapted, counts.drafted, counts.held, counts.preemptions, counts.streamed) > 0, counts


def test_nor_do_they_with_recurrent_states(tmp_path: Path) -> None:
    machine = machine_on(Catalogue(save_recurrent_model(tmp_path), recurrent=True))
    run_machine(machine, 4, 0)
    assert machine.counts.ended > 0
