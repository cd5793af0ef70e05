"""Rows on a real Ray cluster of two workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import pybatch
from pybatch.api.inputs import Encoded
from pybatch.api.outcomes import Failure, Outcome, outcome_of
from pybatch.cluster.process import wait_for_ends, watch
from pybatch.cluster.worker import Request
from pybatch.cluster.worker_pool import DEATHS, Member, WorkerPool, absolute_paths
from pybatch.engine import SamplingParams
from pybatch.jobs.fingerprint import model_fingerprint
from pybatch.machine.ray_cluster import OBJECT_STORE, ClusterError, Slot, connected, find_slots

ROWS = 200
SECONDS = 120  # after which a test gives up


@pytest.fixture(scope="module")
def pool(cluster: Any, tiny_model: Path) -> Iterator[WorkerPool]:
    """One for all tests: to start a worker takes seconds."""
    arguments = {"model": tiny_model, "max_num_seqs": 8, "device": "cpu"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with connected(cluster.address), closing(WorkerPool(arguments, model_fingerprint(tiny_model))) as pool:
        assert signal.getsignal(signal.SIGTERM) is on_sigterm  # Ray's ends the process without saving anything
        yield pool


def test_a_worker_is_killed_and_every_row_is_answered_once_as_by_one_process(
    pool: WorkerPool, answers: dict[int, Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[Slot] = []

    def kill_one(done: int) -> None:
        both_busy = all(member.rows for member in pool._members)
        if not killed and done >= 40 and both_busy:
            killed.append(pool._members[0].slot)
            kill(pool._members[0])

    wait_for_two(pool)
    outcomes = run(pool, requests(ROWS), kill_one)
    assert killed, "no worker was killed while both had rows"
    assert sorted(index for index, _ in outcomes) == list(range(ROWS))
    assert dict(outcomes) == answers
    assert "its worker process has died" in caplog.text


def test_a_row_that_kills_its_worker_fails_and_the_others_are_answered(
    pool: WorkerPool, answers: dict[int, Outcome]
) -> None:
    poison, rows = 13, 60
    killed: list[Member] = []
    beside: list[int] = []

    def kill_who_has_it(done: int) -> None:
        for member in pool._members:
            if poison in member.rows and member not in killed:
                killed.append(member)
                beside.append(len(member.rows) - 1)
                kill(member)

    outcomes = dict(run(pool, requests(rows), kill_who_has_it))
    assert len(beside) == DEATHS
    assert beside[0] > 0
    assert beside[-1] == 0
    failure = outcomes.pop(poison)
    assert isinstance(failure, Failure)
    assert failure.code == "server_error"
    assert failure.message.startswith("3 workers died while they had this row, the last one while it ran alone: its")
    assert outcomes == {index: answers[index] for index in range(rows) if index != poison}


def test_a_machine_leaves_and_another_joins(pool: WorkerPool, cluster: Any, answers: dict[int, Outcome]) -> None:
    left: list[Slot] = []

    def leave(done: int) -> None:
        (node,) = cluster.worker_nodes or [None]
        for member in pool._members:
            if not left and node is not None and member.slot.node == node.node_id and member.rows:
                left.append(member.slot)
                cluster.remove_node(node)

    wait_for_two(pool)
    assert dict(run(pool, requests(ROWS), leave)) == answers
    assert left, "no machine left while it had rows"
    assert [member.slot for member in pool._members if member.slot in left] == []
    cluster.add_node(num_cpus=1, num_gpus=2, object_store_memory=OBJECT_STORE)
    assert [(slot.number, slot.gpus, slot.cpus) for slot in find_slots(use_gpus=True)] == [(0, 1, 0), (1, 1, 0)]
    wait_for_two(pool)
    busy: set[Slot] = set()

    def look(done: int) -> None:
        busy.update(member.slot for member in pool._members if member.rows)
        fewest, most = sorted(pool._members, key=lambda member: len(member.rows))
        assert fewest.rows or fewest.calls or len(most.rows) <= 8, "one is idle while rows wait at the other"

    run(pool, requests(ROWS), look)
    assert len(busy) == 2


def test_paths_are_those_of_the_command_and_names_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {"model": "model", "tokenizer": None, "generation_config": "vllm", "dtype": "model"}
    assert absolute_paths(given) == {**given, "model": str(tmp_path / "model")}


def test_adapters_prefixes_and_caches_are_those_of_the_command_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "prefixes.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    given = {
        "adapter": "adapter",
        "lora_modules": ["one=adapter", "two=name/on-the-hub"],
        "pinned_prefixes": "prefixes.jsonl",
        "weights_cache_dir": "weights",
        "prefix_cache_dir": Path("prefixes"),
    }
    assert absolute_paths(given) == {
        "adapter": str(tmp_path / "adapter"),
        "lora_modules": {"one": str(tmp_path / "adapter"), "two": "name/on-the-hub"},
        "pinned_prefixes": str(tmp_path / "prefixes.jsonl"),
        "weights_cache_dir": str(tmp_path / "weights"),
        "prefix_cache_dir": str(tmp_path / "prefixes"),
    }
    assert absolute_paths({"adapter": "name/on-the-hub"}) == {"adapter": "name/on-the-hub"}


def test_nothing_comes_of_a_row_that_is_withdrawn(pool: WorkerPool, answers: dict[int, Outcome]) -> None:
    rows = requests(ROWS)
    pool.add(rows)
    for row in rows:
        if row.index % 10:
            pool.withdraw(row.index)
    assert dict(run(pool, [row for row in rows if row.index % 10 == 0], add=False)) == {
        index: answers[index] for index in range(0, ROWS, 10)
    }
    assert not any(member.rows for member in pool._members)


def test_machines_with_room_for_other_lengths_are_refused_and_of_other_kinds_are_told(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    list(run(pool, requests(1)))  # by then one has loaded its model
    member = next(each for each in pool._members if each.loaded is not None)
    assert member.loaded is not None
    with pytest.raises(ClusterError, match="has room for 100 tokens of a row, another machine for 512"):
        pool._welcome(member, replace(member.loaded, max_model_len=100))
    assert not caplog.records
    pool._welcome(member, replace(member.loaded, arithmetic="of another chip"))
    assert "machines of several kinds" in caplog.text


def test_a_machine_without_the_model_is_named(pool: WorkerPool, cluster: Any, tmp_path: Path) -> None:
    pool.close()
    missing = tmp_path / "model"
    other = WorkerPool({"model": missing}, "")
    with pytest.raises(ClusterError, match=rf"{re.escape(socket.gethostname())}: .*{re.escape(str(missing))}"):
        run(other, requests(1))
    other.close()


def test_a_machine_whose_pybatch_cannot_be_imported_is_told_at_once(
    pool: WorkerPool, cluster: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.close()
    (tmp_path / "pybatch.py").write_text("raise ImportError('it is of another Python')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
    other = WorkerPool({"model": tiny_model, "device": "cpu"}, model_fingerprint(tiny_model))
    with pytest.raises(ClusterError, match=f"^{re.escape(socket.gethostname())}: ImportError: it is of another Python"):
        run(other, requests(1000))
    other.close()
    cluster.remove_node(node)


def test_workers_have_ended_when_a_pool_is_closed(pool: WorkerPool, cluster: Any, tiny_model: Path) -> None:
    """Loaded or not."""
    pool.close()
    other = WorkerPool({"model": tiny_model, "device": "cpu"}, model_fingerprint(tiny_model))
    end = time.monotonic() + SECONDS
    while not all(member.process for member in other._members):
        assert time.monotonic() < end
        time.sleep(0.01)
    watched = [watch(member.process) for member in other._members if member.process]
    assert watched
    assert None not in watched
    other.close()
    assert wait_for_ends([fd for fd in watched if fd is not None], timeout=0)


def requests(count: int) -> list[Request]:
    """Greedy and sampled, of several lengths."""
    return [
        Request(
            index,
            Encoded(None, [2 + (index * 7 + i) % 250 for i in range(3 + index % 5)]),
            SamplingParams(temperature=float(index % 2), max_tokens=100 + index % 7, ignore_eos=True),
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def answers(tiny_model: Path) -> dict[int, Outcome]:
    """Of one process."""
    rows = requests(ROWS)
    outputs = pybatch.LLM(tiny_model).generate([row.prompt.token_ids for row in rows], [row.params for row in rows])
    return {row.index: outcome_of(output) for row, output in zip(rows, outputs, strict=True)}


def run(
    pool: WorkerPool, rows: list[Request], look: Callable[[int], None] = lambda done: None, *, add: bool = True
) -> list[tuple[int, Outcome]]:
    """look: called with the number of outcomes so far. add: False if the pool has the rows already."""
    left = iter(rows if add else ())
    done: list[tuple[int, Outcome]] = []
    added, end = 0, time.monotonic() + SECONDS
    while len(done) < len(rows):
        assert time.monotonic() < end, f"{len(done)} of {len(rows)} rows in {SECONDS} seconds"
        more = list(islice(left, max(0, pool.capacity - (added - len(done)))))
        added += len(more)
        pool.add(more)
        done += [(index, outcome_of(output)) for index, output in pool.outputs(timeout=0.5)]
        look(len(done))
    return done


def wait_for_two(pool: WorkerPool) -> None:
    end = time.monotonic() + SECONDS
    while sum(member.ready for member in pool._members) < 2:
        assert time.monotonic() < end, f"no two workers in {SECONDS} seconds"
        assert pool.outputs(timeout=0.5) == []


def kill(member: Member) -> None:
    assert member.process is not None
    os.kill(member.process.pid, signal.SIGKILL)
