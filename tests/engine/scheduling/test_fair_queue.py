from __future__ import annotations

import random
import time
from collections import Counter

import pytest
from engine.scheduling.simulation import BLOCK, Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.scheduling.sequence import Request


def names(simulation: Simulation) -> list[str]:
    """Of requests, in the order in which they had their first tokens."""
    return list(dict.fromkeys(name for batch in simulation.batches for name, _ in batch))


def test_a_user_of_a_few_requests_does_not_wait_for_one_of_many() -> None:
    simulation = Simulation(num_blocks=200, max_num_seqs=2, prefix_caching=False)
    for _ in range(100):
        simulation.add([1] * 5, max_tokens=5, user="many")
    few = [simulation.add([1] * 5, max_tokens=5, user="few") for _ in range(5)]
    simulation.run()
    assert max(names(simulation).index(each.request_id) for each in few) <= 11


def test_users_are_served_by_their_weights() -> None:
    """While both wait, one of weight 3 gets three times the tokens of one of weight 1."""
    simulation = Simulation(num_blocks=200, max_num_seqs=2, prefix_caching=False, user_weights={"three": 3.0})
    for _ in range(80):
        for user in ("one", "three", None):
            simulation.add([1] * 5, max_tokens=5, user=user)
    while len(names(simulation)) < 100:
        simulation.step()
    begun = Counter(simulation.requests[int(name)].user for name in names(simulation)[:100])
    assert [begun["one"], begun[None], begun["three"]] == pytest.approx([20, 20, 60], abs=3)
    simulation.run()


def test_the_earliest_deadline_is_first_and_requests_without_one_are_passed_for_a_while_only() -> None:
    simulation = Simulation(num_blocks=200, max_num_seqs=1, prefix_caching=False)
    for target in (None, 5.0, 1.0, None, 3.0, 1.0, 100.0):
        simulation.add([1], max_tokens=1, ttft_target=target)
    simulation.run()
    assert names(simulation) == ["2", "5", "4", "1", "0", "3", "6"]


served_users = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 12)), min_size=12, max_size=24
)


@settings(max_examples=25, deadline=None)
@given(requests=served_users, max_num_seqs=st.integers(1, 4), prefix_caching=st.booleans())
def test_no_user_gets_far_ahead_of_another_while_both_wait(
    requests: list[tuple[str, int, int]], max_num_seqs: int, prefix_caching: bool
) -> None:
    simulation = Simulation(100, max_num_seqs, max_num_batched_tokens=40, prefix_caching=prefix_caching)
    made = [simulation.add([i % 5] * prompt, out, user=user) for i, (user, prompt, out) in enumerate(requests)]
    users = sorted({user for user, _, _ in requests})
    while not all(each.finished for each in made):
        waiting = Counter(each.request.user for each in simulation.scheduler.waiting)
        if len(waiting) < len(users):
            break
        served = Counter(dict.fromkeys(users, 0))
        for each in made:
            (sequence,) = each.sequences
            computed = max(sequence.num_computed, sequence.num_output and len(sequence.tokens) - 1)
            prompt = min(computed, len(each.prompt_token_ids))
            served[str(each.user)] += prompt + 2 * (computed - prompt)
        # The requests of a whole batch, which may all be one's: prompts as long and outputs as long as there are.
        most = max_num_seqs * (20 + 2 * (12 + BLOCK)) + (20 * len(made) if prefix_caching else 0)
        assert max(served.values()) - min(served.values()) <= most
        simulation.step()
    simulation.run()


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(0, 30),
            st.sampled_from([None, "a", "b"]),
            st.sampled_from([None, 0.1, 5.0, 1000.0]),
            st.sampled_from([0, 0, 3]),
            st.integers(0, 60),
        ),
        min_size=1,
        max_size=15,
    )
)
def test_requests_of_all_kinds_come_go_and_end(
    requests: list[tuple[int, str | None, float | None, int, int]],
) -> None:
    simulation = Simulation(num_blocks=40, max_num_seqs=3)
    aborts: list[tuple[int, Request]] = []
    for step in range(61):
        simulation.now = step / 10
        for at, user, target, priority, aborted in requests:
            if at == step:
                request = simulation.add([at % 3] * 7, 6, priority=priority, user=user, ttft_target=target)
                aborts.append((aborted, request))
        for at, request in aborts:
            if at == step and not request.finished:
                simulation.abort(request)
        simulation.step()
        best = min((each.priority for each in simulation.scheduler.waiting), default=None)
        first = next(iter(simulation.scheduler.waiting), None)
        assert first is None or first.priority == best
    simulation.run()


def test_a_long_queue_of_many_users_costs_a_step_nothing() -> None:
    draw = random.Random(0)
    simulation = Simulation(1000, max_num_seqs=4)
    for _ in range(20_000):
        simulation.add([1], max_tokens=50, user=str(draw.randrange(3000)), ttft_target=draw.choice((None, 1.0)))
    begin = time.thread_time()
    for _ in range(40):
        simulation.scheduler.schedule()
    assert time.thread_time() - begin < 0.2
    for request in simulation.requests:
        simulation.scheduler.finish(request.sequences[0])
    simulation.scheduler.check_integrity()
    assert not simulation.scheduler.waiting
