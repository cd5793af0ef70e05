"""Matrix products of int8 and of every type of GGUF blocks, for one, some and many rows: 10^9 weights times rows a
second of one thread, by its own CPU time, the best of some runs, so that a busy machine counts little.

    python bench/block_types.py [ISA ...] [--seconds 0.2] [--json PATH]

ISA: instruction sets as PYBATCH_ISA has them; none: this machine's. Each is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from kernels import matmul_weights, rand
from rich.console import Console
from rich.table import Table

from pybatch import ops
from pybatch.machine.facts import facts

N, K = 512, 2048
ROWS = (1, 8, 64)
BITS = {"w8a8": 8.0} | {kind: 8 * block.bytes / block.weights for kind, block in ops.GGUF_BLOCKS.items()}


def rate(kind: str, rows: int, seconds: float) -> float:
    """Weights times rows a second."""
    matmul, weights, plain = matmul_weights(kind, N, K)
    x, out = rand(rows, K, seed=1), torch.empty(rows, N)
    wanted = x.double() @ plain.double().t()
    error = (matmul(x, *weights, out=out).double() - wanted).norm() / wanted.norm()
    if not error < 2e-2:
        raise SystemExit(f"{kind}: relative error {error:.2e}, expected at most 2e-2")
    calls, best, end = max(1, 256 // rows), float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.thread_time()
        for _ in range(calls):
            matmul(x, *weights, out=out)
        best = min(best, (time.thread_time() - start) / calls)
    return rows * N * K / best


def measure(seconds: float) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    return {kind: [rate(kind, rows, seconds) for rows in ROWS] for kind in BITS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("isa", nargs="*")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each type and number of rows")
    parser.add_argument("--json", type=Path, help="where to write the results and the facts of the machine")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.seconds)))
        return
    found: dict[str, dict[str, list[float]]] = {}
    for isa in args.isa or [ops.ISA]:
        command = [sys.executable, __file__, "--one", "--seconds", str(args.seconds)]
        run = subprocess.run(command, env=os.environ | {"PYBATCH_ISA": isa}, stdout=subprocess.PIPE, check=True)
        found[isa] = json.loads(run.stdout)
    table = Table(title=f"10^9 weights times rows a second, {' / '.join(map(str, ROWS))} rows of {N} x {K}")
    for name in ("type", "bits a weight", *found):
        table.add_column(name, justify="left" if name == "type" else "right")
    for kind, bits in BITS.items():
        rates = (", ".join(f"{each / 1e9:.0f}" for each in found[isa][kind]) for isa in found)
        table.add_row(kind, f"{bits:.3g}", *rates)
    Console(width=120).print(table)
    if args.json:
        report = {"date": date.today().isoformat(), "command": " ".join(sys.argv), "shape": [N, K], "rows": ROWS}
        args.json.write_text(json.dumps(report | {"machine": facts(), "rates": found}, indent=1))


if __name__ == "__main__":
    main()
