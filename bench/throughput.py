"""End-to-end throughput of pybatch, and of other engines on the same work, interleaved in one run.

    python bench/throughput.py --engine pybatch:int8 --engine pybatch:fp32 \\
        --against llamacpp:q8_0,python=PATH/python,model=smollm2-q8_0.gguf \\
        --against transformers:fp32,python=PATH/python,model=smollm2-hf --json result.json

Each engine lives in a process of its own, in the Python environment where it is installed, and stays loaded; each
round runs every engine once on every case, so that a slow spell of the machine hits all alike. The work is fixed:
token ids in, greedy, end of sequence ignored. Decode and mixed cases count output tokens, prefill cases all tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
MODULES = {
    "pybatch": "pybatch_llm",
    "llamacpp": "llamacpp",
    "transformers": "transformers_static",
    "openvino": "openvino_genai_batching",
    "ctranslate2": "ctranslate2_static",
    "vllm": "vllm_llm",
}


class Worker:
    """One engine's process, from a spec NAME:PRECISION[,python=PATH][,model=PATH]."""

    def __init__(self, spec: str, threads: int) -> None:
        self.label, *options = spec.split(",")
        name, _, precision = self.label.partition(":")
        settings = dict(option.split("=", 1) for option in options)
        if name not in MODULES or not settings.keys() <= {"python", "model"}:
            raise SystemExit(f"{spec!r}: expected NAME:PRECISION[,python=PATH][,model=PATH], NAME in {[*MODULES]}")
        self.process = subprocess.Popen(
            [
                settings.get("python", sys.executable),
                str(HERE / "engines/worker.py"),
                MODULES[name],
                settings.get("model", "smollm2-135m"),
                precision,
                str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        )
        self.facts = self.read()

    def read(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label}: the engine's process ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self, requests: list[dict]) -> dict:
        assert self.process.stdin is not None
        print(json.dumps(requests), file=self.process.stdin, flush=True)
        result = self.read()
        wanted = [r["max_new"] for r in requests]
        if [len(tokens) for tokens in result["outputs"]] != wanted:
            raise SystemExit(f"{self.label}: expected {wanted} new tokens")
        return result


def tokens_counted(case: str, requests: list[dict]) -> int:
    new = sum(r["max_new"] for r in requests)
    return new + sum(len(r["prompt"]) for r in requests) if case.startswith("prefill") else new


def measure(workers: list[Worker], cases: dict[str, list[dict]], rounds: int) -> dict[str, dict[str, dict]]:
    results: dict[str, dict[str, dict]] = {w.label: {} for w in workers}
    for case, requests in cases.items():
        counted = tokens_counted(case, requests)
        for worker in workers:
            worker.run([{**r, "max_new": min(r["max_new"], 4)} for r in requests])  # warm-up
            results[worker.label][case] = {"tokens": counted, "seconds": []}
        for _ in range(rounds):
            for worker in workers:
                got = worker.run(requests)
                entry = results[worker.label][case]
                entry["seconds"].append(got["seconds"])
                entry["repeats_itself"] = entry.get("outputs", got["outputs"]) == got["outputs"]
                entry["outputs"] = got["outputs"]
                entry["peak_rss_mib"] = got["peak_rss_mib"]
        for worker in workers:
            entry = results[worker.label][case]
            entry["tokens_per_s"] = counted / statistics.median(entry["seconds"])
            print(f"{case} {worker.label}: {entry['tokens_per_s']:.1f} tokens/s", file=sys.stderr, flush=True)
    return results


def show(results: dict[str, dict[str, dict]], cases: dict[str, list[dict]]) -> None:
    table = Table(title="tokens/s (medians; prefill: all tokens, else output tokens)")
    table.add_column("engine")
    for case in cases:
        table.add_column(case, justify="right")
    table.add_column("peak RSS", justify="right")
    for label, by_case in results.items():
        peak = max(entry["peak_rss_mib"] for entry in by_case.values())
        table.add_row(label, *(f"{by_case[c]['tokens_per_s']:.0f}" for c in cases), f"{peak / 1024:.2f} GiB")
    Console(width=140).print(table)


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    spec = {"action": "append", "default": [], "metavar": "NAME:PRECISION[,python=PATH][,model=PATH]"}
    parser.add_argument("--engine", **spec, help="repeatable (default: pybatch:int8 and pybatch:fp32)")
    parser.add_argument("--against", **spec, help="another one to compare with; repeatable")
    parser.add_argument("--workload", type=Path, default=HERE / "workloads/smollm2.json")
    parser.add_argument("--case", action="append", help="a case of the workload; repeatable (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--json", type=Path, help="where to write everything, outputs included")
    args = parser.parse_args()

    cases = json.loads(args.workload.read_text())["cases"]
    unknown = set(args.case or []) - cases.keys()
    if unknown:
        parser.error(f"--case: unknown {sorted(unknown)}; the workload has {[*cases]}")
    cases = {name: cases[name] for name in args.case or cases}
    specs = (args.engine or ["pybatch:int8", "pybatch:fp32"]) + args.against
    workers = [Worker(spec, args.threads) for spec in specs]
    results = measure(workers, cases, args.rounds)
    show(results, cases)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "cpu": cpu_model(),
            "threads": args.threads,
            "rounds": args.rounds,
            "command": " ".join(sys.argv),
            "engines": {w.label: w.facts for w in workers},
        }
        args.json.write_text(json.dumps({**facts, "results": results}))


if __name__ == "__main__":
    main()
