"""How many drafts are taken, by what steps are said to take."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest import mock

import pytest

from pybatch.engine.intake import Intake
from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.scheduling.admission import admission
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.policies import as_policy
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.sequence import Sequence as Sample
from pybatch.engine.speculation import speculator as module
from pybatch.engine.speculation.speculator import Speculator

MOST = 8


class Oracle:
    """Says what comes next, and of a share of the sequences always something else. looks: for how many so far."""

    has_read = False

    def __init__(self, right: Callable[[Sample], bool]) -> None:
        self.right = right
        self.looks = 0

    def propose(self, sequences: list[Sample], counts: list[int]) -> list[Sequence[int]]:
        self.looks += len(sequences)
        return [[7 if self.right(each) else 8] * count for each, count in zip(sequences, counts, strict=True)]


def scheduler_of(prompts: list[int], max_tokens: int, *, max_new: int, speculate: bool = True) -> Scheduler:
    """prompts: their numbers of tokens."""
    sequences = len(prompts)
    pool = BlockPool(4096)
    scheduler = Scheduler(
        pool,
        admission(as_policy("continuous")),
        block_size=16,
        max_num_seqs=sequences,
        max_num_batched_tokens=max_tokens,
        prefix_caching=True,
        max_background_tokens=max_tokens,
    )
    intake = Intake(
        None,
        eos_ids=frozenset(),
        vocab_size=100,
        max_model_len=4096,
        seed=0,
        max_num_seqs=sequences,
        num_kv_blocks=4096,
        block_size=16,
    )
    for index, length in enumerate(prompts):
        request = intake.request(
            str(index),
            [1 + index] * length,
            SamplingParams(max_tokens=max_new, speculate=speculate),
            prompt=None,
            stream=False,
            index=index,
            arrival_time=0.0,
        )
        scheduler.add(request.sequences[0])
    return scheduler


def drafts_of(
    sequences: int,
    right: Callable[[Sample], bool],
    seconds: Callable[[int, int], float],
    *,
    steps: int = 60,
    max_tokens: int = 2048,
    adaptive: bool = True,
    speculate: bool = True,
    costly: bool = False,
) -> list[list[int]]:
    """How many each sequence gets in each step, where all tokens are 7."""
    scheduler = scheduler_of([1] * sequences, max_tokens, max_new=steps * (MOST + 1), speculate=speculate)
    speculator = Speculator(Oracle(right), most=MOST, max_tokens=max_tokens, adaptive=adaptive, costly=costly)
    taken = []
    while len(taken) < steps:
        chunks = scheduler.schedule()
        speculator.draft(chunks, scheduler.drafts)
        tokens = sum(chunk.num_tokens for chunk in chunks)
        taken.append([len(chunk.drafts) for chunk in chunks])
        assert tokens <= max_tokens
        for chunk in chunks:
            accepted = len(chunk.drafts) if right(chunk.sequence) else 0
            chunk.sequence.num_computed += chunk.num_tokens - len(chunk.drafts) + accepted
            chunk.sequence.tokens.extend([7] * (1 + accepted))
            if chunk.drafts:
                scheduler.drafts.settle(chunk)
        scheduler.check_integrity()
        speculator.learn(seconds(len(chunks), tokens))
    return taken


def bound_by_memory(sequences: int, tokens: int) -> float:
    return 0.01 + 0.0003 * tokens


def bound_by_compute(sequences: int, tokens: int) -> float:
    return 0.001 * tokens


def test_right_drafts_are_all_taken_where_tokens_are_cheap() -> None:
    taken = drafts_of(3, lambda _: True, bound_by_memory)
    assert taken[-1] == [MOST] * 3


def test_wrong_drafts_are_hardly_taken() -> None:
    taken = drafts_of(3, lambda _: False, bound_by_memory, steps=200)
    assert sum(map(sum, taken[100:])) <= 30  # 1 token in 1 of 10 steps


def test_of_two_sequences_the_one_whose_drafts_are_right_gets_them() -> None:
    taken = drafts_of(2, lambda sample: sample.request.request_id == "1", bound_by_memory)
    assert sum(step[0] for step in taken) <= MOST
    assert taken[-1] == [0, MOST]


def test_drafts_that_seldom_prove_right_are_left_where_a_token_takes_what_it_brings() -> None:
    taken = drafts_of(16, lambda sample: int(sample.request.request_id) % 2 == 0, bound_by_compute, steps=100)
    later = [count for step in taken[50:] for count in step[1::2]]
    assert sum(later) / len(later) < 0.05


def test_without_adapting_all_are_taken_that_the_budget_has_room_for() -> None:
    taken = drafts_of(4, lambda _: False, bound_by_compute, adaptive=False, steps=5, max_tokens=14)
    assert taken[1:] == [[8, 2, 0, 0]] * 4


def test_a_request_may_go_without() -> None:
    assert not any(map(sum, drafts_of(2, lambda _: True, bound_by_memory, speculate=False, adaptive=False)))


def test_drafts_that_take_time_to_make_are_as_deep_as_pays() -> None:
    assert drafts_of(3, lambda _: True, bound_by_memory, costly=True)[-1] == [MOST] * 3


def test_drafts_that_take_time_to_make_are_tried_now_and_then_where_they_do_not_pay() -> None:
    taken = drafts_of(3, lambda _: False, bound_by_memory, costly=True, steps=400)
    tries = [step for step, counts in enumerate(taken) if any(counts)]
    assert len([step for step in tries if step >= 100]) <= 10
    assert tries[-1] > 300
    assert sum(taken[tries[-1]]) == 1


class Guesser:
    """Is right with each token with the probability `share`, and takes time: `look` for a sequence and, the first time,
    `first`; or, as a model does, `look` for every pass and a hundredth of it for every draft."""

    has_read = False

    def __init__(self, share: float, look: float, first: float, *, passes: bool) -> None:
        self.share, self.look, self.first, self.passes = share, look, first, passes
        self.clock = 0.0
        self.met: set[Sample] = set()
        self.dice = random.Random(0)

    def propose(self, sequences: list[Sample], counts: list[int]) -> list[Sequence[int]]:
        fresh = set(sequences) - self.met
        self.met |= fresh
        self.has_read = self.passes and bool(fresh)
        self.clock += self.first * len(fresh) + self.look * (max(counts) if self.passes else len(sequences))
        self.clock += self.look * 0.01 * sum(counts) * self.passes
        return [[7 if self.dice.random() < self.share else 8 for _ in range(count)] for count in counts]


def cpu_seconds(tokens: int) -> float:
    """SmolLM2-135M in int8 on two cores."""
    return 0.01 + 0.00045 * tokens


def gain_of(sequences: int, guesser: Guesser, *, tokens: int = 96, noise: float = 0.1) -> float:
    """How many times as fast a batch decodes as it would without drafts."""
    scheduler = scheduler_of([40] * sequences, 2048, max_new=tokens)
    speculator = Speculator(guesser, most=MOST, max_tokens=2048, adaptive=True, costly=guesser.passes)
    seconds, dice = 0.0, random.Random(1)
    with mock.patch.object(module, "time", SimpleNamespace(perf_counter=lambda: guesser.clock)):
        while len(scheduler.running) or len(scheduler.waiting):
            chunks = scheduler.schedule()
            before = guesser.clock
            speculator.draft(chunks, scheduler.drafts)
            took = cpu_seconds(sum(chunk.num_tokens for chunk in chunks))
            decoding = all(chunk.decodes for chunk in chunks)
            if decoding:
                seconds += took + guesser.clock - before
            for chunk in chunks:
                right = 0
                while right < len(chunk.drafts) and chunk.drafts[right] == 7:
                    right += 1
                sequence = chunk.sequence
                complete = chunk.complete
                sequence.num_computed += chunk.num_tokens - len(chunk.drafts) + right
                if complete:
                    sequence.tokens.extend([7] * (1 + right))
                if chunk.drafts:
                    scheduler.drafts.settle(chunk)
                if sequence.num_output >= tokens:
                    scheduler.finish(sequence)
            speculator.learn(took * dice.uniform(1 - noise, 1 + noise))
    return tokens * cpu_seconds(sequences) / seconds


@pytest.mark.parametrize("sequences", [1, 8, 32, 64])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(("look", "first"), [(10e-6, 0.0), (5e-6, 1e-3), (3e-3, 4e-3)])
def test_where_drafts_do_not_pay_they_cost_next_to_nothing(
    sequences: int, share: float, look: float, first: float
) -> None:
    assert gain_of(sequences, Guesser(share, look, first, passes=look > 1e-3)) > 0.97


@pytest.mark.parametrize(
    ("sequences", "share", "least"), [(1, 0.9, 3), (8, 0.9, 1.5), (32, 0.95, 1.1), (64, 0.97, 1.03), (8, 0.6, 1.1)]
)
def test_where_looked_up_drafts_pay_they_are_taken_at_once(sequences: int, share: float, least: float) -> None:
    assert gain_of(sequences, Guesser(share, 10e-6, 0.0, passes=False)) > least


@pytest.mark.parametrize(("sequences", "share", "least"), [(1, 0.9, 1.5), (8, 0.9, 1.2), (32, 0.95, 1.05)])
def test_where_drafts_of_a_model_pay_they_are_made(sequences: int, share: float, least: float) -> None:
    gain = gain_of(sequences, Guesser(share, 3e-3, 0.0, passes=True))
    assert gain > least
