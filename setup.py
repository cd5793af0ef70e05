"""Builds the native parts with CMake and Ninja; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def package_dir(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"building pybatch needs the package {name!r}: pip install {name}")
    return Path(spec.origin).parent


def find_nvcc() -> Path | None:
    """The system's nvcc, or that of PyPI's nvidia-cuda-nvcc."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    on_path, packaged = shutil.which("nvcc"), importlib.util.find_spec("nvidia")
    places = [Path(on_path)] if on_path else []
    places.append(Path(home) / "bin/nvcc")
    if packaged is not None and packaged.submodule_search_locations:
        places += [nvcc for folder in packaged.submodule_search_locations for nvcc in Path(folder).glob("*/bin/nvcc")]
    return next((place for place in places if place.is_file()), None)


def cuda_definitions() -> dict[str, object]:
    """CUDA is built where torch has it, or as PYBATCH_CUDA says (1 or 0); without nvcc the build goes on without it."""
    wanted = os.environ.get("PYBATCH_CUDA", "")
    torch_version = (package_dir("torch") / "version.py").read_text()
    if wanted == "0":
        return {"PYBATCH_NO_CUDA": "PYBATCH_CUDA was 0"}
    if wanted != "1" and re.search(r"^cuda\b.*= *None", torch_version, re.MULTILINE):
        return {"PYBATCH_NO_CUDA": "torch had none"}
    nvcc = find_nvcc()
    if nvcc is None:
        why = "no nvcc was found on the PATH, in CUDA_HOME or from PyPI (nvidia-cuda-nvcc)"
        print(f"pybatch: building without CUDA kernels: {why}")
        return {"PYBATCH_NO_CUDA": why}
    return {"CMAKE_CUDA_COMPILER": nvcc}


PYTHONS = os.environ.get("PYBATCH_PYTHONS", "").split()  # that the wheel is for, where it is for several


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        """A Python takes its own of several modules, and the op libraries have nothing of Python in them."""
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if PYTHONS else (python, abi, platform)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).resolve().parent
        # The extension is called pybatch._C; CMake installs it, for each Python, and the op libraries into one folder.
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": prefix,
            "PYBATCH_PYTHONS": ";".join(PYTHONS or [sys.executable]),
            "pybind11_DIR": package_dir("pybind11") / "share/cmake/pybind11",
            "TORCH_DIR": package_dir("torch"),
            "PYBATCH_VERSION": self.distribution.get_version(),
            "PYBATCH_WERROR": "ON" if os.environ.get("CI") else "OFF",
            **cuda_definitions(),
        }
        # PyPI's, also where its environment is not on the PATH: a system's may be too old for its nvcc.
        cmake = [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else ["cmake"]
        configure = [*cmake, "-G", "Ninja", str(source), *(f"-D{k}={v}" for k, v in definitions.items())]
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run([*cmake, "--build", ".", "--target", "install"], cwd=build, check=True)


setup(ext_modules=[Extension("pybatch._C", sources=[])], cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel})
