from __future__ import annotations

from pathlib import Path

import pytest

from pybatch.model import LoadedModel, ModelError, load_model
from pybatch.model.find import find_model


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    try:
        return find_model("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> LoadedModel:
    return load_model(smollm2_path)
