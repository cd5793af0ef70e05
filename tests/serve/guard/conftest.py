from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pybatch.api.async_llm import AsyncLLM
from pybatch.engine import RequestOutput


@pytest.fixture(scope="session")
def llm(tiny_model: Path) -> Iterator[AsyncLLM]:
    """For servers on threads of this process."""
    llm = AsyncLLM(tiny_model, threads=1, num_kv_blocks=256)
    yield llm
    llm.close()


@pytest.fixture
def slow_steps(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model of some size: a request takes seconds."""
    step = llm.engine.step

    def slow_step() -> list[RequestOutput]:
        time.sleep(0.01)
        return step()

    monkeypatch.setattr(llm.engine, "step", slow_step)
