from __future__ import annotations

from dataclasses import replace

from engine.runs import MakeEngine, drain
from engine.scheduling.simulation import Simulation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pybatch.engine import SamplingParams
from pybatch.engine.scheduling.admission import Load, admission
from pybatch.engine.scheduling.policies import Dynamic, Micro, Static

IDLE = Load(running=0, prefilling=0, waiting=3, returning=0, first_length=7, longest_wait=1.0, queued=3, max_num_seqs=8)


def test_a_static_batch_is_formed_once() -> None:
    policy = admission(Static())
    assert policy.open_places(IDLE) == 3
    policy.joined(2, full=False)  # the step had no tokens left for the third
    later = replace(IDLE, running=2, waiting=5, first_length=9)
    assert policy.open_places(later) == 1
    assert policy.length == 7
    policy.joined(0, full=True)  # it finds no blocks, so the batch goes on without it
    assert policy.open_places(later) == 0
    assert policy.open_places(replace(later, running=0, returning=1)) == 0
    assert policy.open_places(replace(later, running=0)) == 5


def test_a_micro_batchs_group_is_formed_once() -> None:
    policy = admission(Micro())
    assert policy.open_places(IDLE) == 2
    policy.joined(1, full=True)
    prefilling = replace(IDLE, running=1, prefilling=1)
    assert policy.open_places(prefilling) == 0
    assert policy.open_places(replace(prefilling, prefilling=0)) == 2


def test_a_dynamic_batch_waits_as_long_as_it_is_told() -> None:
    policy = admission(Dynamic(max_wait=2.0))
    assert policy.open_places(IDLE) == 0
    assert policy.open_places(replace(IDLE, longest_wait=2.0)) == 3
    assert admission(Dynamic(max_wait=2.0)).open_places(replace(IDLE, waiting=9)) == 8


def test_sizes_are_those_given() -> None:
    many = replace(IDLE, waiting=50)
    assert admission(Static(batch_size=5)).open_places(many) == 5
    assert admission(Micro(micro_batch=3)).open_places(many) == 3
    dynamic = admission(Dynamic(max_batch=4, max_wait=2.0))
    assert dynamic.open_places(replace(IDLE, waiting=3)) == 0
    assert dynamic.open_places(replace(IDLE, waiting=6)) == 4


def test_the_engine_is_told_how_long_a_batch_waits(make_engine: MakeEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=1)
    patient = make_engine(policy=Dynamic(max_wait=1e6), max_num_seqs=2)
    patient.add_request("0", [1], params)
    assert [patient.step() for _ in range(3)] == [[]] * 3
    patient.add_request("1", [1], params)
    assert len(list(drain(patient))) == 2
    at_once = make_engine(policy="dynamic(max_wait=0)", max_num_seqs=2)
    at_once.add_request("0", [1], params)
    assert len(at_once.step()) == 1


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 25), st.integers(1, 20), st.integers(1, 12), st.integers(1, 3)),
        min_size=2,
        max_size=12,
    ),
    num_blocks=st.integers(8, 16),
    policy=st.sampled_from(("static", "static(batch_size=2)", "static(by_length=False)", "dynamic")),
    aborted=st.dictionaries(st.integers(0, 25), st.integers(0, 11), max_size=6),
)
@example([(0, 16, 2, 1), (0, 16, 2, 1), (1, 1, 1, 1)], 16, "static", {1: 1})
def test_nobody_joins_a_batch_under_way(
    arrivals: list[tuple[int, int, int, int]], num_blocks: int, policy: str, aborted: dict[int, int]
) -> None:
    """Whoever runs was there when the batch was formed, at the last step before which nothing had begun and not ended,
    however short of blocks the pool is and whichever sequences are aborted."""
    simulation = Simulation(num_blocks, max_num_seqs=4, max_num_batched_tokens=16, policy=policy)
    arrived: dict[str, int] = {}
    begun: set[str] = set()
    formed = 0
    for step in range(1000):
        for at, prompt, max_tokens, n in arrivals:
            if at == step:
                arrived[simulation.add([at % 2] * prompt, max_tokens, n).request_id] = step
        if aborted.get(step, len(arrived)) < len(arrived):
            for sequence in simulation.requests[aborted[step]].sequences:
                simulation.scheduler.finish(sequence)
        if not any(r.request_id in begun and not r.finished for r in simulation.requests):
            formed = step
        simulation.step()
        begun |= {name for name, _ in simulation.batches[-1]}
        assert all(arrived[name] <= formed for name, _ in simulation.batches[-1])
        if len(arrived) == len(arrivals) and all(request.finished for request in simulation.requests):
            return
    raise AssertionError("requests wait for ever")


def batches_of(lengths: list[int], size: int, policy: str, *, max_tokens: int = 3) -> list[list[int]]:
    """The numbers of the prompts of each batch, for prompts of these lengths that are there from the beginning."""
    simulation = Simulation(
        2000, max_num_seqs=16, max_num_batched_tokens=5000, policy=f"static(batch_size={size}{policy})"
    )
    for length in lengths:
        simulation.add([1] * length, max_tokens)
    simulation.run()
    batches: list[list[int]] = []
    for batch in simulation.batches:
        names = sorted(int(name) for name, _ in batch)
        if not batches or batches[-1] != names:
            batches.append(names)
    return batches


def test_a_static_batch_is_of_prompts_of_similar_length() -> None:
    lengths = [10, 200, 11, 190, 1000, 240, 7, 990]
    assert batches_of(lengths, 2, "") == [[0, 2], [1, 3], [4, 7], [5, 6]]
    assert batches_of(lengths, 2, ", by_length=False") == [[0, 1], [2, 3], [4, 5], [6, 7]]


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30), size=st.integers(1, 6))
def test_the_oldest_is_in_the_next_batch_and_the_others_are_nearest_to_it(lengths: list[int], size: int) -> None:
    batches = batches_of(lengths, size, "")
    left = list(range(len(lengths)))
    for batch in batches:
        assert batch[0] == left[0]
        assert len(batch) == min(size, len(left))
        head = lengths[left[0]]
        left = [number for number in left if number not in batch]
        for taken in batch:
            for other in left:  # none of those left is clearly nearer: two groups of lengths
                far, near = (
                    max(lengths[taken] / head, head / lengths[taken]),
                    max(lengths[other] / head, head / lengths[other]),
                )
                assert far <= near * 1.22
    assert not left
