"""Kills a job at random moments, again and again, and looks at what is left.

    python bench/kill.py [--kills 100] [--rows 200] [--model DIR] [--json PATH]

Rows, greedy and sampled, with several samples and some that fail, through `pybatch run` in a process that gets SIGKILL
after a random time, from the first file it opens to the last rename. Then the same command goes on. Checked after each
kill: every record that was in the journal is there unchanged, so no row that was finished has run again; a file at the
output's path is whole. Checked when a job is done: every row once, and the same bytes as an uninterrupted job's.

Without --model a tiny random model is made.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pybatch.jobs.record import checked

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

COMMAND = [sys.executable, "-P", "-c", "from pybatch.cli import main; main()", "run"]
OPTIONS = ["--max-tokens", "24", "--ignore-eos", "--num-kv-blocks", "256", "--max-num-seqs", "8"]


def write_rows(path: Path, count: int) -> None:
    rows = [
        {"prompt": f"Say {i % (count - count // 8)}", "temperature": i % 2, "n": 1 + i % 3, "pad": "x" * (i * 37 % 900)}
        for i in range(count)
    ]
    lines = [json.dumps(row) for row in rows]
    lines[count // 3] = '{"prompt": "cut'
    path.write_text("\n".join(lines) + "\n")


def records(journal: Path) -> tuple[dict[bytes, bytes], int]:
    """Whole records by their row, and the bytes of what is not whole."""
    found, torn = {}, 0
    for line in journal.read_bytes().splitlines(keepends=True) if journal.exists() else ():
        text = checked(line)
        if text is None:
            torn += len(line)
        elif not text.startswith(b"{"):
            index, rest = text.split(b" ", 1)
            found[index] = rest
    return found, torn


class Trial:
    """One job after the other, until so many kills have been made."""

    def __init__(self, folder: Path, model: str, rows: int) -> None:
        self.folder, self.model = folder, model
        self.prompts, self.output = folder / "in.jsonl", folder / "out.jsonl"
        write_rows(self.prompts, rows)
        self.figures: dict[str, Any] = dict.fromkeys(("kills", "jobs", "torn", "before_first_row", "published"), 0)
        whole = folder / "whole.jsonl"
        start = time.perf_counter()
        assert self.run(whole) == 1  # a row fails
        self.seconds = time.perf_counter() - start
        self.expected = whole.read_bytes()
        assert self.expected.count(b"\n") == rows

    def run(self, output: Path, kill_after: float | None = None) -> int | None:
        """The exit code; None if it was killed."""
        arguments = [str(self.prompts), "-o", str(output), "--model", self.model, *OPTIONS]
        with subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            try:
                _, err = process.communicate(timeout=kill_after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                return None
            assert b"Traceback" not in err, err.decode()
            return process.returncode

    def go(self, kills: int, rng: random.Random) -> None:
        journal = self.folder / "out.jsonl.journal"
        before: dict[bytes, bytes] = {}
        while self.figures["kills"] < kills:
            code = self.run(self.output, kill_after=rng.uniform(0, self.seconds * 1.1))
            if code is not None:
                assert code == 1, f"exit code {code}"
                assert self.output.read_bytes() == self.expected
                self.figures["jobs"] += 1
                for path in self.folder.glob("out*"):
                    path.unlink()
                before = {}
                continue
            after, torn = records(journal)
            assert {index: after.get(index) for index in before} == before, "a finished row is lost or has run again"
            assert not self.output.exists() or self.output.read_bytes() == self.expected, "a part of the results"
            self.figures["kills"] += 1
            self.figures["torn"] += torn > 0
            self.figures["before_first_row"] += not after
            self.figures["published"] += self.output.exists()
            before = after
        assert self.run(self.output) == 1
        assert self.output.read_bytes() == self.expected
        self.figures["jobs"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is None:
            from tiny_model import save_tiny_model

            tiny = Path(folder) / "tiny"
            tiny.mkdir()
            model = str(save_tiny_model(tiny))
        trial = Trial(Path(folder), model, args.rows)
        trial.go(args.kills, random.Random(args.seed))
    table = Table(title=f"{args.kills} kills of jobs of {args.rows} rows", title_justify="left", show_header=False)
    for name, value in (
        ("kills", trial.figures["kills"]),
        ("of these before a row was finished", trial.figures["before_first_row"]),
        ("of these after the results were there", trial.figures["published"]),
        ("journals with a torn end", trial.figures["torn"]),
        ("jobs done, each with the bytes of an uninterrupted one", trial.figures["jobs"]),
        ("finished rows lost or run again", 0),
    ):
        table.add_row(name, str(value))
    Console().print(table)
    if args.json:
        about = {"date": date.today().isoformat(), "machine": platform.processor() or platform.machine()}
        args.json.write_text(json.dumps({**about, "rows": args.rows, **trial.figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
