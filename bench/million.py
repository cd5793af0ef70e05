"""A very long job: what its rows cost in memory and time, and what the journal costs.

    python bench/million.py memory [--rows 1000000] [--json PATH]
    python bench/million.py journal [--rows 288] [--rounds 3] [--json PATH]

memory: rows of short prompts through a tiny random model, against a job of 1000: peak resident memory, and rows/s and
CPU time, both without what a job of 1000 rows takes.

journal: the demo's workload (examples/reviews.jsonl repeated, greedy, 128 tokens), in turns with the journal and with
results kept in memory until the end. A busy machine's times vary by more than the journal takes, so the wall time
inside the journal's calls is measured too.

Every job is `pybatch run` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
FEW = 1000


# ---- a job ----


def run_job(source: Path, output: Path, options: list[str], *, keep: str = "journal") -> dict[str, Any]:
    """keep: where finished rows are until the end, "journal" or "memory"."""
    command = [sys.executable, __file__, "job", keep, str(source), "-o", str(output), *options]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages)
        assert child.stdout is not None
        inside = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            messages.seek(0)
            raise SystemExit(messages.read().decode())
    return {
        "peak_rss_mib": usage.ru_maxrss / 1024,
        "wall_s": time.perf_counter() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "journal_s": float(inside),
    }


def job(keep: str, arguments: list[str]) -> None:
    """The child process. Prints the seconds inside the calls of the journal."""
    from pybatch.cli import main as run_command
    from pybatch.jobs.journal import Journal
    from pybatch.jobs.record import Record

    append, kept, inside = Journal.append, {}, 0.0

    def timed_append(self: Journal, record: Record) -> None:
        nonlocal inside
        start = time.perf_counter()
        append(self, record)
        inside += time.perf_counter() - start

    def keep_in_memory(self: Journal, record: Record) -> None:
        kept[record.index] = record
        self._enter(record.index, record.failed, 0, 0)

    Journal.append = timed_append  # type: ignore[method-assign]
    if keep == "memory":
        Journal.append = keep_in_memory  # type: ignore[method-assign]
        Journal.__getitem__ = lambda self, index: kept[index]  # type: ignore[method-assign]
    sys.argv[1:] = ["run", *arguments]
    try:
        run_command()
    finally:
        print(inside)


# ---- memory ----


def memory(args: argparse.Namespace) -> dict[str, Any]:
    from tiny_model import save_tiny_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_tiny_model(folder)
        options = ["--model", str(model), "--raw", "--temperature", "0", "--max-tokens", "2", "--ignore-eos"]
        few, many = (numbered_rows(folder, rows, [*options, "--threads", "1"]) for rows in (FEW, args.rows))
    growth = many["peak_rss_mib"] - few["peak_rss_mib"]
    rows = many["rows"] - few["rows"]
    wall, cpu = ((many[clock] - few[clock]) / rows for clock in ("wall_s", "cpu_s"))
    table = Table(title=f"{args.rows:,} rows against {FEW:,}")
    for column in ("rows", "peak RSS", "wall", "CPU"):
        table.add_column(column, justify="right")
    for each in (few, many):
        cells = (f"{each['peak_rss_mib']:.0f} MiB", f"{each['wall_s']:.0f} s", f"{each['cpu_s']:.0f} s")
        table.add_row(f"{each['rows']:,}", *cells)
    table.caption = f"{growth:.1f} MiB more; {1 / wall:,.0f} rows/s; {1e6 * cpu:.0f} us of CPU a row"
    Console(width=100).print(table)
    return {"runs": [few, many], "growth_mib": growth, "rows_per_s": 1 / wall, "cpu_us_per_row": 1e6 * cpu}


def numbered_rows(folder: Path, rows: int, options: list[str]) -> dict[str, Any]:
    source, output = folder / f"{rows}.jsonl", folder / f"{rows}.out.jsonl"
    with source.open("w") as file:
        file.writelines(f'{{"id": {i}, "prompt": "Row {i * 7919 % rows}"}}\n' for i in range(rows))
    figures = run_job(source, output, options)
    with output.open("rb") as file:
        numbers = (json.loads(line)["id"] for line in file)
        if not all(a == b for a, b in zip_longest(numbers, range(rows))):
            raise SystemExit(f"{output}: expected {rows} rows in order")
    return {"rows": rows, **figures}


# ---- journal ----


def journal(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, list[dict[str, Any]]] = {"journal": [], "memory": []}
    options = ["--model", args.model, "--quantization", "int8", "--temperature", "0", "--max-tokens", "128"]
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "rows.jsonl", Path(name) / "out.jsonl"
        lines = (ROOT / "examples/reviews.jsonl").read_text().splitlines(keepends=True)
        source.write_text("".join(numbered(lines[i % len(lines)], i) for i in range(args.rows)))
        for _ in range(args.rounds):
            for keep, runs in figures.items():
                runs.append(run_job(source, output, [*options, "--fresh"], keep=keep))
    table = Table(title=f"{args.rows} rows of the demo's workload, {args.rounds} rounds")
    for column in ("rows are kept in", "CPU s (least)", "wall s (least)", "wall s in the journal's calls"):
        table.add_column(column, justify="right")
    for keep, runs in figures.items():
        clocks = [[run[clock] for run in runs] for clock in ("cpu_s", "wall_s", "journal_s")]
        cells = (f"{statistics.median(clock):.2f} ({min(clock):.2f})" for clock in clocks)
        table.add_row(keep, *cells)
    with_it, without = (min(run["cpu_s"] for run in figures[keep]) for keep in ("journal", "memory"))
    share = statistics.median(run["journal_s"] / run["wall_s"] for run in figures["journal"])
    table.caption = f"by CPU time {without / with_it:.1%} of the throughput without; {share:.2%} is inside the journal"
    Console(width=100).print(table)
    return {"runs": figures, "throughput_of_without": without / with_it, "share_inside": share}


def numbered(line: str, number: int) -> str:
    """The row with a system message of its own, so that it is not an earlier one's equal."""
    row = json.loads(line)
    return json.dumps({**row, "messages": [{"role": "system", "content": f"{number}"}, *row["messages"]]}) + "\n"


def main() -> None:
    if sys.argv[1:2] == ["job"]:
        return job(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "journal"])
    parser.add_argument("--rows", type=int, help="default: 1000000, or 288 for the journal")
    parser.add_argument("--rounds", type=int, default=3, help="of journal")
    parser.add_argument("--model", default="smollm2-135m", help="of journal")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measure = {"memory": memory, "journal": journal}[args.what]
    args.rows = args.rows or {"memory": 1_000_000, "journal": 288}[args.what]
    results = measure(args)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "cores": psutil.cpu_count(logical=False),
        }
        args.json.write_text(json.dumps({**facts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
