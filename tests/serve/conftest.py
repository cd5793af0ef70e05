from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import Server, serving


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[Server]:
    """One for all tests that only send requests. The model is called "tiny"."""
    with serving(tiny_model, "--served-model-name", "tiny") as server:
        yield server
