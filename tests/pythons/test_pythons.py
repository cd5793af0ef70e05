"""One wheel for several Pythons: _C is compiled for each, by the build's own rules, and each imports its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch

from pybatch import ops

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ABOUT = """
import pathlib, sys, sysconfig
assert sys.version_info >= (3, 11) and pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
print(sysconfig.get_config_var("EXT_SUFFIX"))
"""
USE = "from pybatch import _C; print(_C.version, *_C.possible_isas()); print(_C.why_no_cuda())"


def pythons() -> dict[str, str]:
    """The interpreters at hand that have headers, one of each version, by their modules' suffix; this one first."""
    places = [sys.executable, *(shutil.which(f"python3.{minor}") for minor in range(11, 20))]
    found: dict[str, str] = {}
    for place in [*filter(None, places), *sorted(Path.home().glob(".pyenv/versions/*/bin/python3"))]:
        done = subprocess.run([place, "-c", ABOUT], capture_output=True, text=True)
        if done.returncode == 0:
            found.setdefault(done.stdout.strip(), str(place))
    return found


FOUND = pythons()
needs_cmake = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("cmake", "ninja", "pybind11")),
    reason="needs cmake, ninja and pybind11",
)
needs_two = pytest.mark.skipif(len(FOUND) < 2, reason="needs two versions of Python with their headers")
FIRST, SECOND = [*FOUND.values(), "", ""][:2]


def configure(build: Path, *names: str) -> subprocess.CompletedProcess[str]:
    pybind11 = importlib.util.find_spec("pybind11")
    assert pybind11 is not None
    assert pybind11.origin is not None
    definitions = {
        "CMAKE_BUILD_TYPE": "None",
        "CMAKE_INSTALL_PREFIX": build / "site",
        "PYBATCH_PYTHONS": ";".join(names),
        "PYBATCH_CPU": Path(ops.__file__).parents[1] / "libpybatch_cpu.so",
        "pybind11_DIR": Path(pybind11.origin).parent / "share/cmake/pybind11",
    }
    return cmake("-G", "Ninja", "-S", HERE, "-B", build, *(f"-D{name}={value}" for name, value in definitions.items()))


def cmake(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = [sys.executable, "-m", "cmake", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@cache
def site() -> Path:
    build = ROOT / "build" / "pythons"  # compiled again only where a source has changed
    for done in (configure(build, FIRST, SECOND), cmake("--build", build, "--parallel", "2", "--target", "install")):
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "site"


def run(python: str, code: str, *libraries: Path) -> subprocess.CompletedProcess[str]:
    """torch's libraries have nothing of Python in them, so that any version finds their symbols."""
    folders = [*libraries, Path(torch.__file__).parent / "lib"]
    environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)), "PYTHONPATH": str(site())}
    return subprocess.run([python, "-c", code], env=environment, cwd=site(), capture_output=True, text=True)


@needs_cmake
@needs_two
def test_each_python_takes_its_own_module() -> None:
    for python in (FIRST, SECOND):
        done = run(python, USE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0].split() == ["test", *ops.library._C.possible_isas()]


@needs_cmake
@needs_two
def test_a_driver_that_is_too_old_is_told_of() -> None:
    done = run(SECOND, USE, site().parent)  # where libcuda.so.1 is
    assert done.stdout.splitlines()[1] == (
        "the NVIDIA driver is too old: it is one for CUDA 12.4, and pybatch's kernels need one for CUDA 13 or later"
    )


@needs_cmake
@needs_two
def test_a_python_without_a_module_is_told_which_there_are(tmp_path: Path) -> None:
    package = shutil.copytree(site() / "pybatch", tmp_path / "pybatch")
    (package / f"_C{[*FOUND][1]}").unlink()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pybatch._C"
    assert run(SECOND, code).stderr.splitlines()[-1] == (
        f"ImportError: pybatch has no _C{[*FOUND][1]}, which this Python needs: it was built as "
        f"_C{sysconfig.get_config_var('EXT_SUFFIX')}; PYBATCH_PYTHONS names others"
    )


@needs_cmake
def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    done = configure(tmp_path, "python9.9")
    assert done.returncode != 0
    assert "PYBATCH_PYTHONS: expected Python interpreters, got python9.9" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("names", "tag"), [("python3.11 python3.12", "py3-none"), ("", f"cp3{sys.version_info[1]}-")])
def test_the_tag_of_a_wheel(names: str, tag: str, tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "pybatch/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = os.environ | {"PYBATCH_PYTHONS": names}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--skip-build"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").iterdir()
    assert f"-{tag}" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        assert f"Tag: {tag}" in content.read(f"pybatch-{wheel.name.split('-')[1]}.dist-info/WHEEL").decode()
