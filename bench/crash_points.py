"""Ends a job at each of its calls that change a file, one after the other, and goes on.

    python bench/crash_points.py [--unordered]

Of a write half is done. After each end the same command runs again, and must leave the files that an uninterrupted job
leaves, with the same lines, and no others. Prints what is wrong, and how many points there are. Where bench/kill.py
kills at random moments, this misses none; but the operating system survives, so it says nothing of a power failure.

Each run is a fork of this process, which has imported what a job needs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

CALLS = ("open", "write", "ftruncate", "fsync", "utime", "link", "replace", "unlink")
ENGINE = ["--max-tokens", "3", "--temperature", "1", "--num-kv-blocks", "64", "--threads", "1"]
ENDED = 77


def run(arguments: list[str], prepare: Callable[[], object] = lambda: None) -> int:
    """The exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    from pybatch.cli import main

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.argv = ["pybatch", "run", *arguments]
    code = 70
    try:
        prepare()
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def end_at(point: int, folder: Path) -> None:
    """Ends this process at its call of this number that changes something in the folder."""
    numbers = count(1)
    os_open, os_write = os.open, os.write

    def ending(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(where: Any, *rest: Any, **options: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{where}") if isinstance(where, int) else os.fspath(where)
            changes = real is not os_open or rest[0] & os.O_CREAT
            if str(folder) in str(path) and changes and next(numbers) == point:
                if real is os_write:
                    real(where, bytes(rest[0])[: len(rest[0]) // 2])
                os._exit(ENDED)
            return real(where, *rest, **options)

        return call

    for name in CALLS:
        setattr(os, name, ending(getattr(os, name)))


def lines_of(folder: Path) -> dict[str, list[bytes]]:
    """Of each file, sorted; of the journal, which has a date, none."""
    return {
        path.name: [] if path.suffix == ".journal" else sorted(path.read_bytes().splitlines(keepends=True))
        for path in folder.iterdir()
    }


def try_all(model: str, base: Path, options: list[str]) -> int:
    """How many points there are."""
    prompts, folder = base / "prompts.jsonl", base / "job"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(2)) + "{\n")
    command = [str(prompts), "-o", str(folder / "out.jsonl"), "--model", model, *ENGINE, *options]
    expected: dict[str, list[bytes]] = {}
    for point in count(0):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        code = run(command, lambda at=point: end_at(at, folder))  # type: ignore[misc]
        if code == ENDED:
            code = run(command)
        elif point:
            return point - 1
        found = lines_of(folder)
        expected = expected or found
        if code != 1 or found != expected:
            print(f"point {point}: exit code {code}, {found}")
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unordered", action="store_true")
    args = parser.parse_args()
    import torch
    from tiny_model import save_tiny_model

    import pybatch.jobs.report.report
    import pybatch.jobs.row_runner  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        tiny = Path(base) / "tiny"
        tiny.mkdir()
        points = try_all(str(save_tiny_model(tiny)), Path(base), ["--unordered"] if args.unordered else [])
    print(points, "points")


if __name__ == "__main__":
    main()
