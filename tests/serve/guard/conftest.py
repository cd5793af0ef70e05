from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pybatch.api.async_llm import AsyncLLM


@pytest.fixture(scope="session")
def llm(tiny_model: Path) -> Iterator[AsyncLLM]:
    """For servers on threads of this process."""
    llm = AsyncLLM(tiny_model, threads=1, num_kv_blocks=256)
    yield llm
    llm.close()
