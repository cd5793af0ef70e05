from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from pybatch.machine.threads import set_threads, usable_cores


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


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_is_refused(threads: object) -> None:
    with pytest.raises(ValueError, match="threads"):
        set_threads(threads)  # type: ignore[arg-type]
