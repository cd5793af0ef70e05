"""Slots of recurrent states. A Simulation checks in each step that a sequence reads the state of its own tokens."""

from __future__ import annotations

import pytest
from engine.scheduling.simulation import BLOCK, Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.scheduling.policies import POLICIES
from pybatch.engine.scheduling.sequence import Request

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=10),
    num_blocks=st.integers(8, 24),
    num_states=st.integers(2, 16),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    policy=st.sampled_from(list(POLICIES)),
    prefix_caching=st.booleans(),
    aborted=st.integers(0, 30),
)
def test_every_sequence_goes_on_from_its_own_state_and_ends(
    requests: list[tuple[list[int], int, int]],
    num_blocks: int,
    num_states: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    policy: str,
    prefix_caching: bool,
    aborted: int,
) -> None:
    simulation = Simulation(
        num_blocks, max_num_seqs, max_num_batched_tokens, policy, prefix_caching, num_states=num_states
    )
    for prompt, max_tokens, n in requests:
        simulation.add(prompt, max_tokens, n)
    if aborted < len(requests):
        simulation.step()
        simulation.abort(simulation.requests[aborted])
    simulation.run()


def with_states(num_states: int = 16, **settings: int) -> Simulation:
    return Simulation(num_states=num_states, max_num_batched_tokens=64, **settings)


def answered(simulation: Simulation, prompt: list[int], max_tokens: int = 1, n: int = 1) -> Request:
    request = simulation.add(prompt, max_tokens, n)
    simulation.run()
    return request


def test_a_prompt_is_found_to_the_end_of_its_full_blocks() -> None:
    simulation = with_states()
    answered(simulation, [1] * 11)
    assert simulation.batches == [[("0", 8)], [("0", 3)]]  # a chunk ends where the state is kept
    assert answered(simulation, [1] * 11).metrics.num_cached_tokens == 8
    assert answered(simulation, [1] * 11 + [2] * 9).metrics.num_cached_tokens == 8


def test_a_common_prefix_is_found_by_the_third_who_has_it() -> None:
    """The blocks of the first tell the second where it leaves, and the second keeps the state there."""
    simulation, prefix = with_states(), [1] * (2 * BLOCK)
    found = [answered(simulation, prefix + [last] * 6).metrics.num_cached_tokens for last in (2, 3, 4, 5)]
    assert found == [0, 0, 8, 8]


def test_the_next_turn_goes_on_from_the_last_block_edge_of_the_answer() -> None:
    simulation = with_states()
    first = answered(simulation, [1, 2, 3, 4, 5], max_tokens=14)
    tokens = list(first.sequences[0].tokens)
    assert answered(simulation, [*tokens, 0, 0, 0]).metrics.num_cached_tokens == (len(tokens) - 1) // BLOCK * BLOCK
    known = simulation.states
    assert known is not None
    edges = 2 + 2  # of each prompt its own, of each answer the last alone: those on the way are free again
    assert known.pool.num_blocks - len(known.pool._free) <= edges


def test_who_runs_comes_before_what_is_kept() -> None:
    """With two slots for a sequence and none besides nothing is found, and everyone runs."""
    simulation = with_states(num_states=2, max_num_seqs=4)
    for _ in range(2):
        for last in range(3):
            simulation.add([1] * 11 + [last], max_tokens=5, n=2)
    simulation.run()
    assert max(len(batch) for batch in simulation.batches) == 1


def test_a_preempted_sequence_leaves_its_state_at_the_last_block_edge() -> None:
    simulation = with_states(num_blocks=8, max_num_seqs=2)
    requests = [simulation.add([last] * 9, max_tokens=16) for last in (1, 2)]
    while simulation.scheduler.preemption.count == 0:
        simulation.step()
    (victim,) = (each.sequences[0] for each in requests if each.metrics.num_preemptions)
    assert simulation.states is not None
    blocks = (len(victim.tokens) - 1) // BLOCK
    assert blocks > 9 // BLOCK
    assert simulation.states.pool.find(victim.keys[blocks - 1]) is not None
    simulation.run()


def test_samples_go_on_from_one_state() -> None:
    simulation = with_states()
    simulation.add([1] * 10, max_tokens=4, n=3)
    simulation.step()
    simulation.step()
    assert len({sequence.state for sequence in simulation.requests[0].sequences}) == 1
    simulation.step()
    assert len({sequence.state for sequence in simulation.requests[0].sequences}) == 3
    simulation.run()


@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_chunk_is_cut_only_where_a_state_is_kept(prefix_caching: bool) -> None:
    simulation = with_states(prefix_caching=prefix_caching)
    answered(simulation, [1] * 30)
    assert [batch[0][1] for batch in simulation.batches] == ([28, 2] if prefix_caching else [30])


def test_a_fault_at_a_slot_is_the_one_sequences_who_was_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = with_states()
    first, second = simulation.add([1] * 3, max_tokens=2), simulation.add([2] * 3, max_tokens=2)
    assert simulation.states is not None
    slots = iter([7])
    monkeypatch.setattr(simulation.states.pool, "allocate", lambda: next(slots))
    with pytest.raises(StopIteration):
        simulation.step()
    assert first.sequences[0].next_state == 7
    assert simulation.scheduler.running.at is second.sequences[0]
