from __future__ import annotations

import random
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch import LLM, SamplingParams
from pybatch.engine import EngineConfig, RequestOutput
from pybatch.jobs.order.admission import AdmissionOrder
from pybatch.tune.simulator import Simulator, Work

BLOCK = 4


def drain(order: AdmissionOrder[int]) -> list[int]:
    return [order.pop()[0] for _ in range(len(order))]


def order_of(rows: list[tuple[list[int], int | None]], block_size: int = BLOCK) -> list[int]:
    order: AdmissionOrder[int] = AdmissionOrder(block_size=block_size)
    for i, (tokens, output) in enumerate(rows):
        order.push(i, tokens, output)
    return drain(order)


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.lists(st.binary(min_size=1, max_size=24).map(lambda text: [byte & 1 for byte in text]), max_size=80),
    st.integers(0, 1 << 32).map(random.Random),
)
def test_each_row_once_within_the_bounds_whenever_it_comes(
    max_rows: int, prompts: list[list[int]], pace: random.Random
) -> None:
    max_bytes = 400
    order: AdmissionOrder[int] = AdmissionOrder(block_size=BLOCK, max_rows=max_rows, max_bytes=max_bytes)
    pushed_at: list[int] = []
    popped: list[int] = []
    held = 0
    while len(popped) < len(prompts):
        for _ in range(pace.randint(0, 10)):
            if len(pushed_at) < len(prompts) and order.has_room:
                held += 4 * len(prompts[len(pushed_at)]) + 8
                order.push(len(pushed_at), prompts[len(pushed_at)], size=8)
                pushed_at.append(len(popped))
        assert len(order) == len(pushed_at) - len(popped) <= max_rows
        assert held < max_bytes + 4 * 24 + 8
        for _ in range(pace.randint(1, 10)):
            if len(order):
                row, tokens = order.pop()
                assert list(tokens) == prompts[row]
                assert len(popped) - pushed_at[row] < 2 * max_rows
                held -= 4 * len(tokens) + 8
                popped.append(row)
    assert sorted(popped) == list(range(len(prompts)))
    with pytest.raises(IndexError):
        order.pop()


def test_a_row_larger_than_the_window_passes_alone() -> None:
    order: AdmissionOrder[str] = AdmissionOrder(block_size=BLOCK, max_bytes=100)
    assert order.has_room
    order.push("large", [1] * 1000)
    assert not order.has_room
    assert order.pop()[0] == "large"
    assert order.has_room


def test_rows_alike_keep_their_order() -> None:
    assert order_of([([9, i], None) for i in range(50)]) == list(range(50))
    assert order_of([([i % 3] * BLOCK + [i], 7) for i in range(9)]) == [0, 3, 6, 1, 4, 7, 2, 5, 8]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.integers(1, 50)), min_size=1, max_size=60))
def test_two_prefixes_are_in_use_at_most(rows: list[tuple[int, int, int]]) -> None:
    groups = [prefix for prefix, _, _ in rows]
    order = order_of([([prefix] * BLOCK + [100 + i] * tail, output) for i, (prefix, tail, output) in enumerate(rows)])
    left = {group: groups.count(group) for group in groups}
    for row in order:
        left[groups[row]] -= 1
        assert sum(0 < count < groups.count(group) for group, count in left.items()) <= 2


def test_compute_and_memory_are_used_in_proportion_all_the_time() -> None:
    rng = random.Random(0)
    rows = [([i] * rng.randrange(200, 400), 4) for i in range(60)] + [([99, i], 100) for i in range(140)]
    rng.shuffle(rows)
    compute = [len(tokens) + output for tokens, output in rows]
    memory = [output * (2 * len(tokens) + output) for tokens, output in rows]

    def imbalance(order: list[int]) -> float:
        shares = zip(
            accumulate(compute[row] / sum(compute) for row in order),
            accumulate(memory[row] / sum(memory) for row in order),
            strict=True,
        )
        return max(abs(a - b) for a, b in shares)

    mixed = order_of([([*tokens], output) for tokens, output in rows])
    largest = max(max(compute) / sum(compute), max(memory) / sum(memory))
    assert imbalance(mixed) <= 2 * largest < imbalance(list(range(len(rows))))


def answers(
    llm: LLM, prompts: list[list[int]], params: list[SamplingParams], order: list[int]
) -> tuple[list[tuple[list[int], object]], int]:
    """Each prompt's tokens and log-probabilities, in the order of prompts, and the prompt tokens found in the cache."""
    assert llm.engine.reset_prefix_cache()
    outputs: dict[str, RequestOutput] = {}
    for i in order:
        llm.engine.add_request(str(i), prompts[i], params[i], index=i)
    while llm.engine.has_unfinished():
        outputs |= {output.request_id: output for output in llm.engine.step()}
    cached = sum(output.num_cached_tokens for output in outputs.values())
    samples = [outputs[str(i)].outputs[0] for i in range(len(prompts))]
    return [(sample.token_ids, sample.logprobs) for sample in samples], cached


def test_prefixes_are_found_in_a_small_cache_and_answers_are_the_same_bits(tiny_model: Path) -> None:
    llm = LLM(tiny_model, num_kv_blocks=28, max_model_len=128, max_num_seqs=4, max_num_batched_tokens=64, threads=1)
    rng = random.Random(0)
    groups, rows, prefix = 8, 64, 80
    prefixes = [[rng.randrange(2, 250) for _ in range(prefix)] for _ in range(groups)]
    prompts = [prefixes[i % groups] + [rng.randrange(2, 250) for _ in range(rng.randrange(1, 30))] for i in range(rows)]
    rng.shuffle(prompts)
    params = [
        SamplingParams(temperature=i % 2, max_tokens=rng.randrange(1, 16), ignore_eos=True, logprobs=1)
        for i in range(rows)
    ]
    given = list(range(rows))
    order = order_of([(prompt, each.max_tokens) for prompt, each in zip(prompts, params, strict=True)], 16)
    expected, few = answers(llm, prompts, params, given)
    got, many = answers(llm, prompts, params, order)
    assert got == expected
    ideal = (rows - groups) * prefix
    assert few < 0.6 * ideal
    assert many >= 0.9 * ideal


def test_a_job_is_faster_than_in_file_order_and_than_by_prefix_alone() -> None:
    """Documents with short answers beside chats with long ones, on the engine's own scheduler. A step of more than 32
    tokens is bound by compute."""
    rng = random.Random(0)
    documents = [[rng.randrange(9999) for _ in range(150)] for _ in range(10)]
    rows = [
        (documents[i // 8] + [rng.randrange(9999)] * rng.randrange(20, 80), rng.randrange(2, 10)) for i in range(80)
    ]
    rows += [([rng.randrange(9999)] * rng.randrange(4, 20), rng.randrange(30, 100)) for _ in range(120)]
    rng.shuffle(rows)
    config = EngineConfig(max_num_seqs=16, max_num_batched_tokens=128)
    simulator = Simulator(config, lambda step: max(1, step.tokens / 32), max_model_len=512, num_kv_blocks=150)

    def seconds(order: list[int]) -> float:
        return simulator.run(Work(rows[i][0], [rows[i][1]]) for i in order).seconds

    given = list(range(len(rows)))
    admitted = seconds(order_of([(tokens, output) for tokens, output in rows], config.block_size))
    assert admitted < 0.85 * seconds(given)
    assert admitted < seconds(sorted(given, key=lambda i: rows[i][0]))
