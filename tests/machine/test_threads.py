from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from pybatch.machine.threads import most_threads, set_threads, usable_cores


@pytest.fixture(autouse=True)
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_default_is_the_usable_cores_or_what_openmp_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_threads(3) == torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads(None) == torch.get_num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert set_threads(None) == torch.get_num_threads() == usable_cores()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_affinity_counts() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no CPU affinity")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 100_000])
def test_a_wrong_number_is_refused(threads: object) -> None:
    with pytest.raises(ValueError, match=rf"^threads: expected an integer from 1 to {most_threads()}, or None"):
        set_threads(threads)  # type: ignore[arg-type]
    assert most_threads() >= (os.cpu_count() or 1)


def test_what_openmp_was_told_has_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 100_000)  # as torch has it in a process so started
    with pytest.raises(ValueError, match=r"^OMP_NUM_THREADS: expected an integer from 1 to"):
        set_threads(None)


FORKS = """
import os, sys, torch
from pybatch import ops
from pybatch.machine.threads import set_threads

def product():
    return ops.matmul_dense(x, weight, out=torch.empty(64, 512)), torch.exp(x).sum()  # ours, and torch's own

set_threads(2)
x, weight = torch.randn(64, 2000), ops.pack_dense(torch.randn(512, 2000))
expected = product()
for depth in range(3):  # a child of a child, too
    for threads in (None, 1, 2):
        if (child := os.fork()) == 0:
            if threads:
                set_threads(threads)
            got = product()
            os._exit(not torch.equal(got[0], expected[0]) or not torch.allclose(got[1], expected[1]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert torch.equal(product()[0], expected[0])
    if depth < 2 and (child := os.fork()):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(torch.get_num_threads(), flush=True)
"""


def test_a_forked_child_computes_on_as_many_threads() -> None:
    """OpenMP's threads are not in it, and it would wait for them for ever."""
    result = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr
