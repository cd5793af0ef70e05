"""Targets on a simulated clock, where a step takes what its tokens do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from engine.scheduling.simulation import Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.scheduling.sequence import Request
from pybatch.engine.scheduling.step import Chunk
from pybatch.engine.standing import BACKGROUND


def seconds(chunks: list[Chunk]) -> float:
    """10 ms a step, 0.2 ms a sequence that decodes, and 1 ms a token of a prompt, twice that after 4,000 others."""
    total = 0.010
    for chunk in chunks:
        after = chunk.sequence.num_computed + chunk.num_tokens / 2
        total += 0.0002 if chunk.decodes else 0.001 * chunk.num_tokens * (1 + after / 4000)
    return total


def noisy(seed: int) -> Callable[[list[Chunk]], float]:
    draw = random.Random(seed)
    return lambda chunks: seconds(chunks) * draw.uniform(0.95, 1.05)


class Timed(Simulation):
    """Looks at times, not into the memory, which would take most of a test's."""

    def write(self, chunks: list[Chunk]) -> None:
        pass

    def read(self, chunks: list[Chunk]) -> None:
        pass

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        pass


def simulation(**options: Any) -> Simulation:
    return Timed(num_blocks=4000, max_num_seqs=16, max_num_batched_tokens=512, prefix_caching=False, now=0.0, **options)


def warmed_up(simulation: Simulation, took: Callable[[list[Chunk]], float] = seconds) -> None:
    """Some steps of all kinds with a target have been measured."""
    simulation.add([1] * 900, 12, tpot_target=1000.0)
    simulation.add([1] * 30, 12)
    while not all(request.finished for request in simulation.requests):
        simulation.step(took)
    simulation.batches.clear()


def add(simulation: Simulation, prompt: int, max_tokens: int, **standing: Any) -> Request:
    return simulation.add([1] * prompt, max_tokens, arrival_time=simulation.now, **standing)


def steps_while(
    simulation: Simulation, going: Callable[[], bool], took: Callable[[list[Chunk]], float] = seconds
) -> list[float]:
    """How long each was."""
    lengths = []
    while going():
        begin = simulation.now
        simulation.step(took)
        lengths.append(simulation.now - begin)
        assert len(lengths) < 20_000
    return lengths


@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_prompt_is_cut_so_that_decodes_meet_their_targets(seed: int) -> None:
    run = simulation()
    took = noisy(seed)
    warmed_up(run, took)
    chats = [add(run, 20, 2000, tpot_target=0.05) for _ in range(4)]
    while not all(chat.sequences[0].num_output for chat in chats):
        run.step(took)
    prompt = add(run, 8000, 2)
    lengths = steps_while(run, lambda: not prompt.sequences[0].num_output, took)
    assert max(lengths) <= 0.05
    assert sum(lengths) < 1.4 * (8000 * 0.001 * 2)  # most of each step is the prompt's


def test_without_targets_prompts_have_the_whole_step() -> None:
    run = simulation()
    chats = [add(run, 20, 2000) for _ in range(4)]
    prompt = add(run, 2000, 2)
    steps_while(run, lambda: not prompt.sequences[0].num_output)
    assert max(count for batch in run.batches for _, count in batch) >= 500
    assert not any(chat.finished for chat in chats)


@pytest.mark.parametrize("target", [0.001, 0.0115])
def test_a_target_that_cannot_be_met_does_not_stall_others(target: float) -> None:
    """One that the decoding step itself misses binds nobody; one that leaves hardly any time leaves a fifth of it."""
    run = simulation()
    warmed_up(run)
    add(run, 20, 5000, tpot_target=target)
    run.step(seconds)
    prompt = add(run, 1500, 2)
    begin = run.now
    steps_while(run, lambda: not prompt.sequences[0].num_output)
    alone = 1500 * 0.001 * (1 + 750 / 4000) + 3 * 0.010
    assert run.now - begin < (1.1 if target < 0.01 else 6.5) * alone


def test_a_prompt_in_danger_gets_more_and_is_first() -> None:
    """A short prompt passes one of 6,000 tokens, and is computed faster than a TPOT target would have it."""
    run = simulation()
    warmed_up(run)
    chat = add(run, 20, 3000, tpot_target=0.03)
    run.step(seconds)
    long = add(run, 6000, 2)
    steps_while(run, lambda: long.sequences[0].num_computed < 300)
    short = add(run, 700, 2, ttft_target=1.2)  # at 20 ms a step it would take 1.8 s, and behind the other 10 s
    begin = run.now
    steps_while(run, lambda: not short.sequences[0].num_output)
    assert run.now - begin < 1.2
    assert 0 < long.sequences[0].num_output + long.sequences[0].num_computed < 6000
    assert not chat.finished


def test_prompts_without_a_target_go_on_beside_those_in_danger() -> None:
    """They have an eighth of every step, however many come that are in danger."""
    run = simulation()
    warmed_up(run)
    long = add(run, 9000, 2)
    run.step(seconds)
    shares = []
    for _ in range(25):
        while sum(not request.finished for request in run.requests) < 3:
            add(run, 500, 1, ttft_target=1.6)  # alone it takes 0.6 s
        before = long.sequences[0].num_computed
        run.step(seconds)
        shares.append(long.sequences[0].num_computed - before)
    assert min(shares) >= 512 // 8
    assert sum(shares) < 0.5 * 25 * 512


def test_a_worse_prioritys_target_binds_no_better_prompt() -> None:
    run = simulation(max_background_tokens=512)
    warmed_up(run)
    add(run, 20, 3000, tpot_target=0.03, priority=BACKGROUND)
    run.step(seconds)
    prompt = add(run, 1000, 2)
    steps_while(run, lambda: not prompt.sequences[0].num_output)
    assert max(count for batch in run.batches for _, count in batch) > 400


@settings(max_examples=20, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.integers(1, 600),
            st.integers(1, 20),
            st.sampled_from([None, 0.0, 0.02, 0.3, 5.0]),
            st.sampled_from([None, 0.0, 0.012, 0.03, 1.0]),
            st.sampled_from([0, 0, -1, BACKGROUND]),
        ),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 3),
)
def test_requests_with_targets_of_all_kinds_end(
    requests: list[tuple[int, int, int, float | None, float | None, int]], seed: int
) -> None:
    run, took = simulation(), noisy(seed)
    for step in range(41):
        for at, prompt, out, ttft, tpot, priority in requests:
            if at == step:
                add(run, prompt, out, ttft_target=ttft, tpot_target=tpot, priority=priority)
        run.step(took)
    steps_while(run, lambda: not all(request.finished for request in run.requests), took)
    run.run()
