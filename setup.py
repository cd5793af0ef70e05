"""Builds the native parts with CMake and Ninja; everything else is in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def package_dir(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"building pybatch needs the package {name!r}: pip install {name}")
    return Path(spec.origin).parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).resolve().parent
        # The extension is called pybatch._C; CMake installs it and the op library into the same package folder.
        prefix = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        definitions = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": prefix,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": package_dir("pybind11") / "share/cmake/pybind11",
            "TORCH_DIR": package_dir("torch"),
            "PYBATCH_VERSION": self.distribution.get_version(),
            "PYBATCH_WERROR": "ON" if os.environ.get("CI") else "OFF",
        }
        configure = ["cmake", "-G", "Ninja", str(source), *(f"-D{k}={v}" for k, v in definitions.items())]
        subprocess.run(configure, cwd=build, check=True)
        subprocess.run(["cmake", "--build", ".", "--target", "install"], cwd=build, check=True)


setup(ext_modules=[Extension("pybatch._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
