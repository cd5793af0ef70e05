from __future__ import annotations

from pathlib import Path

import pytest

from pybatch.model import LoadedModel, load_model


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> LoadedModel:
    return load_model(smollm2_path)
