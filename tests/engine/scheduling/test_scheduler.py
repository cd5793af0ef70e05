from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from engine.scheduling.simulation import Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.scheduling.block_pool import BlockKey, BlockPool
from pybatch.engine.scheduling.policies import POLICIES
from pybatch.engine.scheduling.sequence import Request, Status

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=20)


@settings(max_examples=300, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(1, 3)), min_size=1, max_size=10),
    num_blocks=st.integers(8, 24),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(1, 24),
    policy=st.sampled_from(list(POLICIES)),
    prefix_caching=st.booleans(),
    predict_lengths=st.booleans(),
    aborted=st.integers(0, 30),
)
def test_every_sequence_reads_its_own_tokens_and_ends(
    requests: list[tuple[list[int], int, int]],
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    policy: str,
    prefix_caching: bool,
    predict_lengths: bool,
    aborted: int,
) -> None:
    simulation = Simulation(
        num_blocks, max_num_seqs, max_num_batched_tokens, policy, prefix_caching, predict_lengths=predict_lengths
    )
    for prompt, max_tokens, n in requests:
        simulation.add(prompt, max_tokens, n)
    if aborted < len(requests):
        simulation.step()
        simulation.abort(simulation.requests[aborted])
    simulation.run()


def test_decodes_go_first_and_prompts_fill_the_rest_of_the_budget() -> None:
    simulation = Simulation(max_num_batched_tokens=10)
    simulation.add([1] * 4, max_tokens=5)
    simulation.step()
    simulation.add([2] * 13, max_tokens=1)
    simulation.run()
    assert simulation.batches == [[("0", 4)], [("0", 1), ("1", 9)], [("0", 1), ("1", 4)], [("0", 1)], [("0", 1)]]


def test_the_least_computed_sequence_is_preempted() -> None:
    simulation = Simulation(num_blocks=6, prefix_caching=False)
    long = simulation.add([1] * 8, max_tokens=9)
    short = simulation.add([2] * 4, max_tokens=9)
    late = simulation.add([3], max_tokens=1)
    simulation.run()
    assert simulation.scheduler.preemption.count == 1
    assert (long.metrics.num_preemptions, short.metrics.num_preemptions, late.metrics.num_preemptions) == (0, 1, 0)


def test_what_others_hold_too_is_no_waste() -> None:
    """Of a long prompt that two have, one loses least; and of those that free no block none is preempted."""
    simulation = Simulation(num_blocks=15, max_num_batched_tokens=64)
    known = [1] * 20
    first, second = (simulation.add([*known, i], max_tokens=30) for i in range(2))
    other = simulation.add([2] * 14, max_tokens=30)
    while simulation.scheduler.preemption.count == 0:
        simulation.step()
    assert [each.metrics.num_preemptions for each in (first, second, other)] == [0, 1, 0]
    simulation.run()


def test_sequences_of_one_step_share_a_prefix_that_it_computes() -> None:
    simulation = Simulation()
    for last in range(3):
        simulation.add([1] * 8 + [last], max_tokens=1)
    simulation.step()
    assert simulation.batches == [[("0", 9), ("1", 1), ("2", 1)]]
    assert [request.metrics.num_cached_tokens for request in simulation.requests] == [0, 8, 8]


@pytest.mark.parametrize("state", ["runs", "has ended"])
def test_the_first_tokens_of_a_block_are_shared_by_copying_it(state: str) -> None:
    simulation = Simulation()
    first = simulation.add([1, 2, 3, 4, 5, 6, 7], max_tokens=9 if state == "runs" else 1)
    simulation.step()
    assert first.finished == (state == "has ended")
    for prompt, cached in (
        ([1, 2, 3, 4, 5, 6, 0], 6),
        ([1, 2, 3, 4, 5, 6, 7, 9, 9], 7),
        ([1, 2, 3, 4, 5], 4),  # its last token is computed for its logits
        ([1, 2, 3, 4], 3),
        ([1, 2, 0], 2),
        ([2, 2, 3, 4, 5, 6], 0),
    ):
        request = simulation.add(prompt, max_tokens=1)
        simulation.step()
        assert request.metrics.num_cached_tokens == cached
    simulation.run()


def test_what_a_sequence_has_said_is_shared_with_the_next_turn() -> None:
    simulation = Simulation()
    request = simulation.add([1, 2, 3, 4, 5], max_tokens=6)
    simulation.run()
    known = list(request.sequences[0].tokens)
    turn = simulation.add([*known, 0, 0, 0], max_tokens=1)
    simulation.run()
    assert turn.metrics.num_cached_tokens == len(known) - 1  # the last token's keys were never computed


def test_samples_share_the_prompts_full_blocks_and_copy_the_last() -> None:
    simulation = Simulation()
    simulation.add([1] * 10, max_tokens=4, n=3)
    simulation.step()
    first, second, third = (list(sequence.blocks) for sequence in simulation.requests[0].sequences)
    assert first[:2] == second[:2] == third[:2]
    assert len({first[2], second[2], third[2]}) == 3
    assert simulation.pool.num_used == 5
    simulation.run()
    assert simulation.batches[1:] == [[("0", 1)] * 3] * 3


def test_a_static_batch_lets_nobody_in_until_it_has_ended() -> None:
    simulation = Simulation(policy="static", max_num_seqs=2)
    for tokens in (2, 4, 1):
        simulation.add([tokens], max_tokens=tokens)
    simulation.run()
    assert [[name for name, _ in batch] for batch in simulation.batches] == [
        ["0", "1"], ["0", "1"], ["1"], ["1"], ["2"],
    ]  # fmt: skip


def test_a_dynamic_batch_starts_when_it_is_full() -> None:
    simulation = Simulation(policy="dynamic", max_num_seqs=2, now=0.0)
    simulation.add([1], max_tokens=1)
    simulation.step()
    simulation.add([2], max_tokens=1)
    simulation.run()
    assert [[name for name, _ in batch] for batch in simulation.batches] == [[], ["0", "1"]]


def test_a_dynamic_batch_starts_when_the_first_has_waited_long_enough() -> None:
    simulation = Simulation(policy="dynamic", max_num_seqs=2)
    simulation.add([1], max_tokens=1)
    simulation.run()
    assert simulation.batches == [[("0", 1)]]


def test_micro_batches_join_one_after_the_other() -> None:
    simulation = Simulation(policy="micro", max_num_seqs=8, max_num_batched_tokens=8)
    for i in range(4):
        simulation.add([i] * 6, max_tokens=3)
    simulation.run()
    assert simulation.batches[:4] == [
        [("0", 6), ("1", 2)],
        [("0", 1), ("1", 4)],
        [("0", 1), ("1", 1), ("2", 6)],
        [("1", 1), ("2", 1), ("3", 6)],
    ]


# ---- blocks that are promised ----


def test_a_prompt_takes_its_blocks_as_its_chunks_are_computed() -> None:
    simulation = Simulation(num_blocks=32, max_num_batched_tokens=16)
    sequence = simulation.add([1] * 100, max_tokens=2).sequences[0]
    for step in range(1, 7):
        simulation.step()
        assert len(sequence.blocks) == 4 * step
        assert sequence.num_promised == 25 - 4 * step
    simulation.step()
    assert (len(sequence.blocks), sequence.num_promised) == (25, 0)
    simulation.run()


def test_nobody_joins_who_would_need_what_is_promised() -> None:
    simulation = Simulation(num_blocks=32, max_num_batched_tokens=16, prefix_caching=False)
    first = simulation.add([1] * 80, max_tokens=2)
    second = simulation.add([2] * 60, max_tokens=2)
    while not first.finished:
        simulation.step()
        assert first.finished or second.sequences[0].status is Status.WAITING
    simulation.run()
    assert simulation.scheduler.preemption.count == 0


def test_what_is_cached_stays_until_a_prompt_needs_the_block() -> None:
    simulation = Simulation(num_blocks=32, max_num_batched_tokens=16)
    simulation.add([2] * 40, max_tokens=1)
    simulation.run()
    long = simulation.add([1] * 100, max_tokens=2)
    for _ in range(5):
        simulation.step()
    assert simulation.pool.num_evictions == 0
    assert long.sequences[0].num_promised == 5
    simulation.run()
    assert simulation.pool.num_evictions > 0


def test_a_prompt_whose_promised_blocks_were_taken_waits_until_others_end() -> None:
    """Two that decode grow into what a long prompt was promised."""
    simulation = Simulation(num_blocks=32, max_num_seqs=3, max_num_batched_tokens=6, prefix_caching=False)
    others = [simulation.add([i] * 4, max_tokens=28) for i in (1, 2)]
    while any(other.sequences[0].num_pending > 1 for other in others):
        simulation.step()
    long = simulation.add([3] * 90, max_tokens=2)  # 23 blocks of the 28 that are free
    lacking = waits = 0
    while not all(other.finished for other in others):
        simulation.step()
        lacking += simulation.pool.num_free < long.sequences[0].num_promised
        waits += long.sequences[0].num_pending > 0 and "2" not in dict(simulation.batches[-1])
    assert lacking > 5
    assert waits > 0
    simulation.run()
    assert long.metrics.num_preemptions == 0
    assert simulation.scheduler.preemption.count <= 1


def test_drafts_leave_what_is_promised() -> None:
    simulation = Simulation(num_blocks=32, max_num_batched_tokens=8)
    decoding = simulation.add([1] * 7, max_tokens=20).sequences[0]
    simulation.step()
    simulation.add([2] * 100, max_tokens=2)
    for _ in range(2):
        chunks = simulation.scheduler.schedule()
        free = simulation.pool.num_free - simulation.scheduler._tables.num_promised
        (chunk,) = (each for each in chunks if each.sequence is decoding)
        simulation.scheduler.drafts.add(chunk, [0] * 20)
        assert simulation.scheduler._tables.num_promised <= simulation.pool.num_free
        assert simulation.pool.num_free - simulation.scheduler._tables.num_promised >= min(free, 2)
        simulation.scheduler.drafts.settle(chunk)


# ---- prompts for which there is no room ----


def crowded(**settings: Any) -> tuple[Simulation, Request]:
    """One that runs has 30 of 64 blocks, and needs 36 in the end; a prompt of 50 waits."""
    simulation = Simulation(num_blocks=64, prefix_caching=False, **{"max_num_seqs": 8, **settings})
    running = simulation.add([1] * 116, max_tokens=27).sequences[0]
    while running.num_pending > 1:
        simulation.step()
    return simulation, simulation.add([0] * 200, max_tokens=2)


def test_a_prompt_without_room_takes_blocks_chunk_by_chunk_and_short_ones_pass_it() -> None:
    simulation, long = crowded()
    short = [simulation.add([i] * 5, max_tokens=3) for i in range(3)]
    held = []
    while not all(request.finished for request in short):
        simulation.step()
        held.append(len(long.sequences[0].blocks))
    assert held[0] == 4  # a step of 15 tokens
    assert max(held) <= 64 - 30 - 64 // 8
    assert not long.finished
    assert not simulation.requests[0].finished
    assert long.sequences[0].num_passed == 3
    simulation.run()
    assert simulation.scheduler.preemption.count == 0


def test_where_not_even_a_chunk_has_room_short_ones_pass_too() -> None:
    simulation, long = crowded(max_num_batched_tokens=240)
    short = simulation.add([1] * 5, max_tokens=3)
    simulation.step()
    assert (long.sequences[0].status, short.sequences[0].status) == (Status.WAITING, Status.RUNNING)
    simulation.run()


@pytest.mark.parametrize("max_num_batched_tokens", [16, 240])
def test_no_more_than_max_num_seqs_pass_a_prompt(max_num_batched_tokens: int) -> None:
    simulation, long = crowded(max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=4)
    while not long.finished:
        simulation.add([1] * 5, max_tokens=3)  # without end
        simulation.step()
    assert long.sequences[0].num_passed == 4
    assert simulation.scheduler.preemption.count == 0


def test_nobody_passes_a_preempted_sequence() -> None:
    simulation = Simulation(num_blocks=16, prefix_caching=False, max_num_batched_tokens=64)
    simulation.add([1] * 28, max_tokens=30)
    victim = simulation.add([1] * 27, max_tokens=20)
    while simulation.scheduler.preemption.count == 0:
        simulation.step()
    late = simulation.add([0], max_tokens=1)
    while victim.sequences[0].status is Status.WAITING:
        assert late.sequences[0].status is Status.WAITING
        simulation.step()
    simulation.run()


class CountingPool(BlockPool):
    matches = 0

    def match(self, keys: Iterable[BlockKey]) -> list[int]:
        self.matches += 1
        return super().match(keys)


def test_a_head_of_the_queue_without_room_is_matched_again_only_when_it_might_fit() -> None:
    pool = CountingPool(64)
    simulation = Simulation(num_blocks=64, max_num_seqs=8, max_num_batched_tokens=400, make_pool=lambda _: pool)
    known = [1, 0, 0] * 40
    simulation.add(known, max_tokens=1)
    simulation.run()
    running = simulation.add([1] * 60, max_tokens=30)
    simulation.step()
    long = simulation.add([*known, *[1] * 80], max_tokens=1)
    simulation.step()
    before = pool.matches
    for _ in range(20):
        simulation.step()
    assert long.sequences[0].status is Status.WAITING
    assert pool.matches == before
    simulation.run()
    assert running.finished
    assert long.metrics.num_cached_tokens > 0


def test_the_cached_prefix_of_a_prompt_that_waits_outlives_those_of_sequences_that_end() -> None:
    simulation = Simulation(num_blocks=64, max_num_seqs=8, max_num_batched_tokens=400)
    known = [1, 0, 0] * 40
    simulation.add(known, max_tokens=1)
    simulation.run()
    simulation.add([0] * 60, max_tokens=60)
    for i in range(3):
        simulation.add([i + 2] * 20, max_tokens=3)
    simulation.step()
    long = simulation.add([*known, *[1] * 80], max_tokens=1)
    simulation.run()
    assert simulation.pool.num_evictions > 0
    assert long.metrics.num_cached_tokens == len(known)


def test_the_cached_blocks_of_a_preempted_sequence_outlive_those_of_sequences_that_end() -> None:
    simulation = Simulation(num_blocks=16)
    requests = [simulation.add([i] * length, max_tokens=30) for i, length in enumerate((28, 16, 8))]
    _, ends, victim = (request.sequences[0] for request in requests)
    while simulation.scheduler.preemption.count == 0:
        simulation.step()
    assert (ends.status, victim.status) == (Status.RUNNING, Status.WAITING)
    pool = simulation.pool
    kept = [key for key in victim.keys if pool.is_cached(key)]
    assert len(kept) >= 2
    simulation.scheduler.finish(ends)
    for _ in range(pool.num_free - len(kept)):
        pool.allocate()
    assert pool.num_evictions > 0
    assert all(map(pool.is_cached, kept))


def test_a_head_without_room_counts_the_prefix_that_another_has_put_to_use() -> None:
    simulation = Simulation(num_blocks=70, max_num_seqs=8, max_num_batched_tokens=400)
    prefix = [1, 0, 0, 0] * 20
    simulation.add(prefix, max_tokens=1)
    simulation.run()  # 20 blocks are cached, and nobody's
    stays = simulation.add([0] * 117, max_tokens=40)
    leaves = simulation.add([1] * 23, max_tokens=4)
    simulation.step()
    head = simulation.add([*prefix, *[1] * 55], max_tokens=2).sequences[0]  # 14 blocks more, of 14 that are free
    passes = simulation.add([*prefix, 0], max_tokens=40)
    simulation.step()
    assert (head.status, passes.sequences[0].status) == (Status.WAITING, Status.RUNNING)
    while not leaves.finished:
        simulation.step()
    simulation.step()
    assert head.status is not Status.WAITING
    assert not stays.finished
    simulation.run()


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 150), st.integers(1, 20), st.integers(1, 2)),
        min_size=1,
        max_size=16,
    ),
    num_blocks=st.integers(44, 70),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(4, 60),
    prefix_caching=st.booleans(),
    predict_lengths=st.booleans(),
    policy=st.sampled_from(list(POLICIES)),
)
def test_long_and_short_prompts_all_end_and_none_is_passed_too_often(
    arrivals: list[tuple[int, int, int, int]],
    num_blocks: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    prefix_caching: bool,
    predict_lengths: bool,
    policy: str,
) -> None:
    simulation = Simulation(
        num_blocks, max_num_seqs, max_num_batched_tokens, policy, prefix_caching, predict_lengths=predict_lengths
    )
    for step in range(41):
        for at, prompt, max_tokens, n in arrivals:
            if at == step:
                simulation.add([prompt % 2] * prompt, max_tokens, n)
        simulation.step()
    simulation.run()
    for request in simulation.requests:
        assert all(sequence.num_passed <= max_num_seqs for sequence in request.sequences)


def test_leaving_a_long_queue_costs_nothing_per_place_in_it() -> None:
    simulation = Simulation()
    requests = [simulation.add([1], max_tokens=1) for _ in range(20_000)]
    begin = time.thread_time()
    for request in reversed(requests):
        simulation.scheduler.finish(request.sequences[0])
    assert time.thread_time() - begin < 0.5  # 0.02, and 4 where each is looked for
    assert not simulation.scheduler.waiting
