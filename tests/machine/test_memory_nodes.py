"""Weights and KV come from the memory nodes that were chosen: what the system says of their pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pybatch import LLM
from pybatch.machine.huge_pages import HUGE_PAGE, empty_bytes
from pybatch.machine.memory_nodes import interleave_memory

MAPS = Path("/proc/self/numa_maps")


@pytest.fixture(autouse=True)
def _as_the_system_chooses() -> Iterator[None]:
    yield
    interleave_memory(None)


def policy(tensor: torch.Tensor) -> str:
    """Of the map that a tensor is in, as the system has it."""
    found = ""
    for line in MAPS.read_text().splitlines():
        start, name, *_ = line.split()
        if int(start, 16) <= tensor.data_ptr():
            found = name
    return found


@pytest.mark.skipif(not MAPS.exists(), reason="this system tells nothing of memory nodes")
def test_memory_is_taken_from_the_nodes_in_turn() -> None:
    cpu = torch.device("cpu")
    before = empty_bytes(HUGE_PAGE, cpu).fill_(1)
    try:
        nodes = interleave_memory("all")
    except ValueError as error:
        pytest.skip(str(error))  # a container's rules forbid it
    chosen = ",".join(map(str, nodes))
    assert interleave_memory(chosen) == nodes
    after = empty_bytes(HUGE_PAGE + 5, cpu).fill_(1)
    assert re.fullmatch(r"interleave:[\d,-]+", policy(after))
    assert policy(before) == "default"
    interleave_memory(None)
    assert policy(empty_bytes(HUGE_PAGE, cpu).fill_(1)) == "default"


def test_what_is_no_list_of_nodes_is_refused(tmp_path: Path) -> None:
    for wrong in ("", "some", "0-", "99999", "0,99999", "1-0", "0-999999999999", 0):
        with pytest.raises(ValueError, match=rf"interleave_memory: expected .* got {wrong!r}"):
            interleave_memory(wrong)  # type: ignore[arg-type]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nMems_allowed_list:\t1-2,900\n")
    with pytest.raises(ValueError, match=r"which are 1, 2, 900; got '0'"):
        interleave_memory("0", tmp_path)
    with pytest.raises(ValueError, match="interleave_memory: expected None, since this system has no memory nodes"):
        interleave_memory("all", tmp_path / "elsewhere")


def test_a_node_that_is_not_there_is_an_error_before_the_model_loads() -> None:
    with pytest.raises(ValueError, match="interleave_memory: expected"):
        LLM("no such model", interleave_memory="99999")


def test_the_system_may_refuse(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Mems_allowed_list:\t900\n")  # which the system does not have
    with pytest.raises(ValueError, match="interleave_memory: expected None, since the system refuses: mbind"):
        interleave_memory("all", tmp_path)
