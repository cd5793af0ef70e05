"""The points behind the live page."""

from __future__ import annotations

import resource
import time
from contextlib import closing
from pathlib import Path

import pytest
from batch_files import until

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.monitoring import history
from pybatch.serve.monitoring.history import History


def test_it_goes_on_when_files_can_be_opened_again(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server whose clients have taken all that it may open for a while."""
    monkeypatch.setattr(history, "INTERVAL", 0.02)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(AsyncLLM(tiny_model, num_kv_blocks=64, threads=1)) as llm, closing(History(llm)) as points:
        points.start()
        until(points.points, lambda some: len(some) > 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            time.sleep(0.2)
            refused = time.time()
            assert points.points(refused - 0.1) == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: points.points(refused), bool)
