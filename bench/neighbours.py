"""What is left of throughput on a machine that is not quiet, for pybatch and other engines.

    python bench/neighbours.py --against openvino:int8,python=PATH/python,model=PATH --json result.json

Engines are given, run and fed as by bench/throughput.py. The surroundings:

quiet: nothing else runs; what the others are compared with.
busy: an endless loop on the last core. Of two cores one and a half are left, 0.75 of what there was.
spinning: a program that uses torch now and then, whose OpenMP threads spin in between (OMP_WAIT_POLICY=active).
quota: a control group allows as much processor time as three quarters of the cores give. It takes root, and is left
    out where it cannot be made.

Each round runs every engine in all surroundings; figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from throughput import HERE, SPEC, SPINNING_S, Worker, cpu_model, tokens_counted

CORES = psutil.cpu_count(logical=False) or 1
CONTROL_GROUPS = Path("/sys/fs/cgroup")
QUOTA = 0.75  # of the cores
PERIOD_US = 100_000
BUSY = """
print(flush=True)
while True:
    pass
"""
SPINNING = f"""
import time, torch
torch.set_num_threads({CORES})
x = torch.randn(1 << 20)
print(flush=True)
while True:
    torch.exp(x)
    time.sleep(0.1)
"""


@contextmanager
def neighbour(program: str, cores: set[int] | None = None, **environment: str) -> Iterator[None]:
    """Runs a program, from when it has said something."""
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **environment})
    try:
        if cores:
            os.sched_setaffinity(process.pid, cores)
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


class ControlGroup:
    """A group below this process's own, with a quota of processor time. OSError where the system gives none."""

    def __init__(self) -> None:
        lines = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
        paths = {controllers: path.strip("/") for _, controllers, path in lines}
        old = next((each for each in paths if "cpu" in each.split(",")), None)  # control groups v1
        self.home = CONTROL_GROUPS / (old or "") / paths[old or ""]
        self.path = self.home / f"neighbours-{os.getpid()}"
        self.path.mkdir()
        try:
            if old:
                (self.path / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (self.path / "cpu.cfs_quota_us").write_text(str(int(QUOTA * CORES * PERIOD_US)))
            else:
                (self.path / "cpu.max").write_text(f"{int(QUOTA * CORES * PERIOD_US)} {PERIOD_US}")
        except OSError:
            self.path.rmdir()
            raise

    def take(self, process: int) -> None:
        (self.path / "cgroup.procs").write_text(str(process))

    def give_back(self, process: int) -> None:
        (self.home / "cgroup.procs").write_text(str(process))


@contextmanager
def control_group() -> Iterator[ControlGroup | None]:
    try:
        group = ControlGroup()
    except OSError as error:
        print(f"No quota: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield group
    finally:
        group.path.rmdir()


@contextmanager
def surroundings(name: str, workers: list[Worker], group: ControlGroup | None) -> Iterator[None]:
    with ExitStack() as stack:
        if name == "busy":
            stack.enter_context(neighbour(BUSY, {max(os.sched_getaffinity(0))}))
        elif name == "spinning":
            stack.enter_context(neighbour(SPINNING, OMP_WAIT_POLICY="active"))
        elif name == "quota":
            assert group is not None
            for worker in workers:  # of which one computes at a time
                stack.callback(group.give_back, worker.process.pid)
                group.take(worker.process.pid)
        yield


def measure(workers: list[Worker], cases: dict[str, list[dict]], rounds: int, group: ControlGroup | None) -> dict:
    """tokens/s by engine, case and surroundings: one a round."""
    names = ["quiet", "busy", "spinning", *(["quota"] if group else [])]
    rates: dict = {w.label: {case: {name: [] for name in names} for case in cases} for w in workers}
    for worker in workers:
        for requests in cases.values():
            worker.run([{**r, "max_new": min(r["max_new"], 4)} for r in requests])  # warm-up
    for number in range(rounds):
        for case, requests in cases.items():
            for name in names:
                with surroundings(name, workers, group):
                    for worker in workers:
                        time.sleep(SPINNING_S)
                        rate = tokens_counted(case, requests) / worker.run(requests)["seconds"]
                        rates[worker.label][case][name].append(rate)
            print(f"round {number + 1} of {rounds}: {case} done", file=sys.stderr, flush=True)
    return rates


def show(rates: dict) -> None:
    medians = {
        label: {case: {name: statistics.median(each) for name, each in by_name.items()} for case, by_name in of.items()}
        for label, of in rates.items()
    }
    by_case = next(iter(medians.values()))
    for case, names in by_case.items():
        table = Table(title=f"{case}: output tokens/s (of the quiet figure)")
        table.add_column("engine")
        for name in names:
            table.add_column(name, justify="right")
        for label, of in medians.items():
            quiet = of[case]["quiet"]
            shares = [f"{rate:.0f} ({rate / quiet:.2f})" for name, rate in of[case].items() if name != "quiet"]
            table.add_row(label, f"{quiet:.0f}", *shares)
        Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    spec = {"action": "append", "default": [], "metavar": SPEC}
    parser.add_argument("--engine", **spec, help="repeatable (default: pybatch:int8 and pybatch:gguf)")
    parser.add_argument("--against", **spec, help="another one to compare with; repeatable")
    parser.add_argument("--workload", type=Path, default=HERE / "workloads/smollm2.json")
    parser.add_argument(
        "--case", action="append", help="a case of the workload; repeatable (default: decode1, decode32)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args()

    cases = json.loads(args.workload.read_text())["cases"]
    chosen = args.case or ["decode1", "decode32"]
    if unknown := set(chosen) - cases.keys():
        parser.error(f"--case: unknown {sorted(unknown)}; the workload has {[*cases]}")
    specs = (args.engine or ["pybatch:int8", "pybatch:gguf"]) + args.against
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no neighbour is left behind
    workers = [Worker(spec, args.threads, {}) for spec in specs]
    with control_group() as group:
        rates = measure(workers, {name: cases[name] for name in chosen}, args.rounds, group)
    show(rates)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "cpu": cpu_model(),
            "threads": args.threads,
            "rounds": args.rounds,
            "command": " ".join(sys.argv),
            "engines": {w.label: w.facts for w in workers},
        }
        args.json.write_text(json.dumps({**facts, "tokens_per_s": rates}))


if __name__ == "__main__":
    main()
