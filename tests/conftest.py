from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cli_command import Cli, Ran
from tiny_model import save_tiny_model

import pybatch
from pybatch.cli import main
from pybatch.model import ModelError
from pybatch.model.checkpoints.find import find_model

HERE = Path(__file__).parent
TOGETHER = ("serve", "cluster")  # folders whose tests share what takes long to make: a server, Ray
# What takes longest begins first, so that none is left for the end, when the other processes have nothing to do.
LONGEST = (
    "simt/test_address_sanitizer.py", "arm/test_arm.py", "ops/test_isas.py", "simt/test_mutations.py",
    "api/test_real_model.py", "engine/test_stateful.py", "test_examples.py",
)  # fmt: skip


def group(path: str) -> str:
    """What one process takes as a whole: a file, or one of the folders above. path: below tests/."""
    folder = path.partition("/")[0]
    return folder if folder in TOGETHER else path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {item: group(item.path.relative_to(HERE).as_posix()) for item in items}
    largest = (name for name, _ in Counter(groups.values()).most_common())
    order = list(dict.fromkeys([*LONGEST, *largest]))
    items.sort(key=lambda item: order.index(groups[item]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By the names of tests alone: xdist_group marks are lost with pytest 9.2 and pytest-xdist 3.8."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.partition("::")[0].removeprefix("tests/"))

    return ByGroup(config, log)


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would what waits for it here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_package_in_subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(pybatch.__file__).parents[1]))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # not the source tree in the current folder, which has no native parts


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    try:
        return find_model("smollm2-135m")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["pybatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return Ran(int(exit.value.code or 0), *capfd.readouterr())

    return run
