"""Compiles CUDA sources for the SIMT layer with the host's C++ compiler; results are kept by their inputs' hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
CACHE = HERE.parent.parent / "build" / "simt"
RUNTIME_SOURCES = sorted((HERE / "src").glob("*.cpp"))
KERNEL_SOURCES = sorted((CSRC / "cuda").rglob("*.cu"))
PREFIX = HERE / "include" / "simt" / "prefix.h"

CXX = os.environ.get("CXX", "g++")
# As nvcc with --fmad=false: arithmetic is fused only where the source says so.
COMMON = ["-std=c++20", "-g1", "-march=native", "-ffp-contract=off", "-fPIC", "-Wall", "-Wextra", "-Werror"]
RUNTIME = [*COMMON, "-O2", "-fwrapv", "-U_FORTIFY_SOURCE", "-fno-semantic-interposition", "-Wl,-Bsymbolic-functions"]
# Which sanitizer watches the kernels' accesses; the compiler takes one at a time.
# thread: it only puts in its calls. src/runtime.cpp answers them: an access to global or shared memory has to be in a
# buffer that the kernel may touch so, aligned, ordered by barriers and after a write. Local arrays it does not see.
# Calls for undefined behaviour, answered there too, tell of misaligned pointers and of indices outside arrays.
# address: the real one, which has to be preloaded. It finds what leaves a local array, a kernel's parameters or a
# buffer, and what touches a buffer that has been freed; but no race, nothing unwritten and no write to an input.
SANITIZER = os.environ.get("SIMT_SANITIZER", "thread")
KERNEL = [
    *COMMON, "-x", "c++", "-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Winvalid-pch",
    *{
        "thread": [
            "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0",
            "-fsanitize=alignment,bounds,object-size,shift,signed-integer-overflow,integer-divide-by-zero",
        ],
        "address": ["-fsanitize=address", "-fsanitize-recover=address"],
    }[SANITIZER],
]  # fmt: skip
# A copy's kernels run once: what takes time is the compiler, half of it for undefined behaviour. Planted faults are
# caught without, and the kernels as they are run with it.
COPY = ["-O0", "-fno-sanitize=undefined"]


def _headers(*folders: Path) -> list[Path]:
    return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in {".h", ".cuh"} or not p.suffix)


def _cached(name: str, inputs: Iterable[Path], flags: Sequence[str], make: list[str]) -> Path:
    """CACHE/name-HASH, made by running make + ["-o", file] if it is not there yet."""
    digest = hashlib.sha256(repr((CXX, flags)).encode())
    for path in inputs:
        if path.is_file():
            digest.update(path.read_bytes())
    stem, suffix = os.path.splitext(name)
    result = CACHE / f"{stem}-{digest.hexdigest()[:16]}{suffix}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{result.name}.lock", "w") as lock, tempfile.TemporaryDirectory(dir=CACHE) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)  # what one process of tests makes, others wait for
        if not result.exists():
            temporary = Path(folder) / "out"
            done = subprocess.run([CXX, *make, "-o", str(temporary)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"compiling {name} failed:\n{done.stderr}")
            temporary.replace(result)
    return result


def runtime() -> Path:
    """The SIMT runtime, libsimt.so. As one source: it is parsed once, and calls between its parts are inlined."""
    include = HERE / "include"
    inputs = [*RUNTIME_SOURCES, *_headers(HERE / "src", include)]
    *others, last = map(str, RUNTIME_SOURCES)
    sources = [*(word for source in others for word in ("-include", source)), last]
    return _cached("libsimt.so", inputs, RUNTIME, [*RUNTIME, "-shared", "-pthread", f"-I{include}", *sources, "-ldl"])


def _prefix(flags: Sequence[str]) -> Path:
    """What every kernel includes of the layer and of the standard library, parsed once for these flags."""
    make = [*flags, "-x", "c++-header", "-c", f"-I{HERE / 'include'}", str(PREFIX)]
    return _cached("prefix.h.gch", _headers(PREFIX.parents[1]), flags, make)


def _object(source: Path) -> Path:
    csrc = next((folder for folder in source.parents if folder.name == "csrc"), CSRC)
    include = HERE / "include"
    headers = _headers(include, csrc / "pybatch", csrc / "cuda")
    own = ["-O1" if SANITIZER == "thread" else "-Og"]  # AddressSanitizer's run for a few shapes
    flags = [*KERNEL, *(own if csrc == CSRC else COPY)]
    make = [*flags, "-include", str(_prefix(flags).with_suffix("")), "-c", f"-I{include}", f"-I{csrc}", str(source)]
    return _cached(f"{source.stem}.o", [source, *headers], flags, make)


def library(sources: Sequence[Path] = KERNEL_SOURCES) -> Path:
    """A shared library of these .cu files. Those of a csrc/cuda, which may be a copy, take its headers."""
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(_object, sources))
    name = f"{sources[0].stem if len(sources) == 1 else 'kernels'}.so"
    parts = [*objects, runtime()]
    return _cached(name, parts, COMMON, ["-shared", *map(str, parts)])


def check(name: str, source: str) -> None:
    """Compiles C++ source text that includes kernels' headers, for its static assertions alone."""
    flags = [*COMMON, "-x", "c++", "-fsyntax-only", "-Wno-unknown-pragmas"]
    done = subprocess.run(
        [CXX, *flags, f"-I{HERE / 'include'}", f"-I{CSRC}", "-"], input=source, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{name}:\n{done.stderr}")


if __name__ == "__main__":
    print(library([Path(p).resolve() for p in sys.argv[1:]] or KERNEL_SOURCES))
