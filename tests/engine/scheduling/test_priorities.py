"""Sequences of several priorities under one scheduler."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Any

import pytest
from engine.scheduling.simulation import Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.scheduling.policies import POLICIES
from pybatch.engine.scheduling.sequence import Request, Status
from pybatch.engine.standing import BACKGROUND

PRIORITIES = (-1, 0, 3, BACKGROUND)


def simulation_of(**options: Any) -> Simulation:
    return Simulation(**{"num_blocks": 64, "prefix_caching": False, **options})


def status(request: Request) -> Status:
    return request.sequences[0].status


def names(batch: Iterable[tuple[str, int]]) -> list[str]:
    return [name for name, _ in batch]


def test_a_better_one_is_admitted_first_and_equal_ones_in_order_of_arrival() -> None:
    simulation = simulation_of(max_num_seqs=1, max_num_batched_tokens=64)
    for priority in (5, 5, 0, 7, 0, -2):
        simulation.add([1], max_tokens=1, priority=priority)
    simulation.run()
    assert simulation.batches == [[(name, 1)] for name in "524013"]


def test_prompts_get_the_budget_in_the_order_of_their_priorities() -> None:
    simulation = simulation_of(max_num_batched_tokens=10)
    simulation.add([1] * 30, max_tokens=1, priority=5)
    simulation.step()
    simulation.add([2] * 14, max_tokens=1, priority=1)
    simulation.add([3] * 3, max_tokens=1, priority=9)
    simulation.run()
    assert simulation.batches == [
        [("0", 10)], [("1", 10)], [("1", 4), ("0", 6)], [("0", 10)], [("0", 4), ("2", 3)],
    ]  # fmt: skip


def test_where_places_lack_the_least_computed_of_the_worst_is_preempted() -> None:
    simulation = simulation_of(max_num_batched_tokens=64)
    middle = simulation.add([1] * 2, max_tokens=9, priority=5)
    most, least = (simulation.add([1] * length, max_tokens=9, priority=8) for length in (20, 7))
    same = simulation.add([1], max_tokens=9)
    simulation.step()
    best = simulation.add([2] * 6, max_tokens=2)
    simulation.step()
    assert [status(each) for each in (middle, most, same, best)] == [Status.RUNNING] * 4
    assert status(least) is Status.WAITING
    assert sorted(simulation.batches[-1]) == [("0", 1), ("1", 1), ("3", 1), ("4", 6)]
    simulation.step()
    assert best.finished
    simulation.step()
    assert sorted(simulation.batches[-1]) == [("0", 1), ("1", 1), ("2", 8), ("3", 1)]
    simulation.run()
    assert simulation.scheduler.preemption.count == 1


def test_one_of_the_same_or_a_better_priority_is_not_preempted_for_another() -> None:
    simulation = simulation_of(max_num_seqs=2)
    for priority in (3, 1):
        simulation.add([1], max_tokens=6, priority=priority)
    simulation.step()
    simulation.add([1], max_tokens=1, priority=3)
    simulation.add([1], max_tokens=1, priority=7)
    simulation.run()
    assert simulation.scheduler.preemption.count == 0
    assert [sorted(names(batch)) for batch in simulation.batches] == [["0", "1"]] * 6 + [["2", "3"]]


def test_where_blocks_lack_as_many_are_preempted_as_it_takes_and_none_in_vain() -> None:
    simulation = simulation_of(num_blocks=24, max_num_seqs=8, max_num_batched_tokens=128)
    rows = [simulation.add([1] * length, max_tokens=20, priority=4) for length in (18, 10, 14, 17)]  # 5, 3, 4, 5 blocks
    simulation.step()
    fits = simulation.add([2] * 40, max_tokens=4)  # 10 blocks, where 7 are free, and one for each that runs
    simulation.step()
    assert [status(each) for each in (*rows, fits)] == [
        Status.RUNNING, Status.WAITING, Status.WAITING, Status.RUNNING, Status.RUNNING,
    ]  # fmt: skip
    too_long = simulation.add([3] * 80, max_tokens=1, priority=0)  # not beside `fits`
    before = simulation.scheduler.preemption.count
    simulation.step()
    assert status(too_long) is Status.WAITING
    assert simulation.scheduler.preemption.count == before
    simulation.run()


def test_a_prompt_that_takes_blocks_chunk_by_chunk_takes_them_from_worse_ones() -> None:
    simulation = simulation_of(num_blocks=32, max_num_seqs=8, max_num_batched_tokens=16)
    rows = [simulation.add([1] * 11, max_tokens=90, priority=4) for _ in range(6)]
    while sum(len(row.sequences[0].blocks) for row in rows) < 24:
        simulation.step()
    long = simulation.add([2] * 100, max_tokens=2)
    begin = len(simulation.batches)
    while not long.finished:
        simulation.step()
    assert len(simulation.batches) - begin <= -(-100 // (16 - 6)) + 2
    assert long.metrics.num_preemptions == 0
    simulation.run()


def test_a_better_prompt_takes_the_turn_of_one_that_takes_blocks_chunk_by_chunk() -> None:
    simulation = simulation_of(num_blocks=64, max_num_seqs=8)
    running = simulation.add([1] * 116, max_tokens=27).sequences[0]
    while running.num_pending > 1:
        simulation.step()
    worse = simulation.add([0] * 200, max_tokens=2, priority=4)
    simulation.step()
    assert simulation.scheduler.running.short is worse.sequences[0]
    better = simulation.add([2] * 190, max_tokens=2, priority=1)
    simulation.step()
    assert status(worse) is Status.WAITING
    assert simulation.scheduler.running.short is better.sequences[0]
    simulation.run()
    assert better.metrics.num_preemptions == 0


def test_a_decode_without_a_block_preempts_the_worst_first() -> None:
    simulation = simulation_of(num_blocks=8, max_num_batched_tokens=64)
    better = simulation.add([1] * 3, max_tokens=20)
    worse = simulation.add([2] * 15, max_tokens=13, priority=1)  # computed farther
    simulation.run()
    assert (better.metrics.num_preemptions, worse.metrics.num_preemptions) == (0, 1)
    assert simulation.scheduler.preemption.count == 1


def test_what_is_preempted_comes_back_in_front_of_its_own_priority_only() -> None:
    simulation = simulation_of(max_num_seqs=2, max_num_batched_tokens=64)
    rows = [simulation.add([i], max_tokens=9, priority=4) for i in range(3)]
    simulation.step()
    simulation.add([5], max_tokens=3)
    simulation.add([6], max_tokens=5)
    later = simulation.add([7], max_tokens=2, priority=2)
    simulation.step()
    assert [status(row) for row in rows] == [Status.WAITING] * 3
    assert list(simulation.scheduler.waiting) == [each.sequences[0] for each in (later, rows[0], rows[1], rows[2])]
    simulation.run()
    assert simulation.scheduler.preemption.count == 2


@pytest.mark.parametrize("max_num_batched_tokens", [16, 64])
def test_prompts_in_the_background_fill_a_step_up_to_their_limit(max_num_batched_tokens: int) -> None:
    simulation = simulation_of(
        num_blocks=200, max_num_batched_tokens=max_num_batched_tokens, max_background_tokens=6, max_num_seqs=8
    )
    for _ in range(3):
        simulation.add([1] * 20, max_tokens=9, priority=BACKGROUND)
    simulation.step()
    assert simulation.batches[-1] == [("0", 6)]
    simulation.add([2] * 4, max_tokens=9)
    simulation.step()
    assert simulation.batches[-1] == [("3", 4), ("0", 2)]
    simulation.add([2] * 10, max_tokens=9, priority=BACKGROUND - 1)
    simulation.step()
    assert simulation.batches[-1] == [("3", 1), ("4", 10)]
    simulation.run()


def test_a_static_batch_is_not_joined_by_a_better_one_that_comes_later() -> None:
    simulation = simulation_of(policy="static", max_num_seqs=2, num_blocks=200)
    for priority in (4, 4, 0):
        simulation.add([1], max_tokens=3, priority=priority)
    simulation.step()
    simulation.add([1], max_tokens=1, priority=-5)
    simulation.run()
    assert [sorted(names(batch)) for batch in simulation.batches] == [["0", "2"]] * 3 + [["1", "3"]] + [["1"]] * 2


def test_a_dynamic_batch_starts_when_the_oldest_of_any_priority_has_waited_long_enough() -> None:
    simulation = simulation_of(policy="dynamic", max_num_seqs=2, now=0.01)
    simulation.add([1], max_tokens=1, priority=4)
    simulation.step()
    simulation.now = 0.06
    simulation.add([1], max_tokens=1).metrics.arrival_time = 0.06
    simulation.add([1], max_tokens=1).metrics.arrival_time = 0.06
    simulation.step()
    assert [names(batch) for batch in simulation.batches] == [[], ["1", "2"]]
    simulation.run()


def test_a_micro_group_is_of_the_best() -> None:
    simulation = simulation_of(policy="micro", max_num_seqs=8, max_num_batched_tokens=64)
    for priority in (4, 4, 4, 0, 1):
        simulation.add([1] * 6, max_tokens=3, priority=priority)
    simulation.run()
    assert [names(batch)[-2:] for batch in simulation.batches[:3]] == [["3", "4"], ["0", "1"], ["1", "2"]]


arrivals = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(1, 60),
        st.integers(1, 12),
        st.integers(1, 3),
        st.sampled_from(PRIORITIES),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=300, deadline=None)
@given(
    arrivals=arrivals,
    num_blocks=st.integers(22, 60),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 40),
    max_background_tokens=st.integers(1, 40),
    policy=st.sampled_from(list(POLICIES)),
    prefix_caching=st.booleans(),
    predict_lengths=st.booleans(),
)
def test_sequences_of_all_priorities_read_their_own_tokens_and_end(
    arrivals: list[tuple[int, int, int, int, int, int]],
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_background_tokens: int,
    policy: str,
    prefix_caching: bool,
    predict_lengths: bool,
) -> None:
    """They come in the course of 40 steps, and some are aborted."""
    simulation = Simulation(
        num_blocks,
        max_num_seqs,
        max_num_batched_tokens,
        policy,
        prefix_caching,
        max_background_tokens=max_background_tokens,
        predict_lengths=predict_lengths,
    )
    aborts: list[tuple[int, Request]] = []
    for step in range(61):
        for at, prompt, max_tokens, n, priority, aborted in arrivals:
            if at == step:
                request = simulation.add([prompt % 2] * prompt, max_tokens, n, priority)
                aborts.append((aborted, request))
        for at, request in aborts:
            if at == step and request in simulation.requests and not request.finished:
                simulation.abort(request)
        simulation.step()
    simulation.run()


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 30), st.integers(1, 12), st.sampled_from(PRIORITIES)),
        min_size=1,
        max_size=20,
    ),
    max_num_seqs=st.integers(1, 4),
    prefix_caching=st.booleans(),
)
def test_where_only_places_lack_nobody_waits_for_a_worse_one_nor_is_preempted_without_need(
    arrivals: list[tuple[int, int, int, int]], max_num_seqs: int, prefix_caching: bool
) -> None:
    simulation = Simulation(1000, max_num_seqs, 1000, prefix_caching=prefix_caching)
    for step in range(60):
        came = [each for each in arrivals if each[0] == step]
        for _, prompt, max_tokens, priority in came:
            simulation.add([1] * prompt, max_tokens, priority=priority)
        before = simulation.scheduler.preemption.count
        simulation.step()
        waiting, now = list(simulation.scheduler.waiting), list(simulation.scheduler.running)
        if waiting and now:
            assert min(each.priority for each in waiting) >= max(each.priority for each in now)
        assert simulation.scheduler.preemption.count - before <= len(came)
    simulation.run()


def test_of_one_priority_the_schedule_is_that_of_any_other() -> None:
    """Priorities alone decide: rows of a batch by themselves run as interactive requests do, but for their limit."""

    def batches(seed: int, priority: int) -> list[list[tuple[str, int]]]:
        draw = random.Random(seed)
        simulation = Simulation(draw.randint(44, 70), draw.randint(1, 8), draw.choice((9, 40)))
        for _ in range(40):
            if draw.random() < 0.5:
                simulation.add([draw.randint(0, 1)] * draw.randint(1, 150), draw.randint(1, 20), priority=priority)
            simulation.step()
        simulation.run()
        return simulation.batches

    for seed in range(20):
        assert batches(seed, 0) == batches(seed, BACKGROUND) == batches(seed, -3)


def test_a_long_queue_of_many_priorities_costs_a_step_nothing() -> None:
    simulation = Simulation(1000, max_num_seqs=4)
    for i in range(20_000):
        simulation.add([1], max_tokens=50, priority=1 + i * 7919 % 20_000)
    begin = time.thread_time()
    for _ in range(40):
        simulation.scheduler.schedule()
    assert time.thread_time() - begin < 0.2
    for request in simulation.requests:
        simulation.scheduler.finish(request.sequences[0])
    simulation.scheduler.check_integrity()
    assert not simulation.scheduler.waiting
