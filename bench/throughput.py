"""End-to-end throughput of pybatch, and of other engines on the same work, interleaved in one run.

    python bench/throughput.py --engine pybatch:int8 --engine pybatch:fp32 \\
        --against llamacpp:q8_0,python=PATH/python,model=smollm2-q8_0.gguf \\
        --against transformers:fp32,python=PATH/python,model=smollm2-hf --json result.json

Each engine lives in a process of its own, in the Python environment where it is installed, and stays loaded; each
round runs every engine once on every case, so that a slow spell of the machine hits all alike. The work is fixed:
token ids in, greedy, end of sequence ignored. Decode and mixed cases count output tokens, prefill cases all tokens.

env=NAME=VALUE in an engine's spec, as often as wanted, sets its environment. --avx2 holds every engine to AVX2 by
hiding what comes after it from CPUID (engines/avx2_only.c says how), which needs no engine's consent; one that was
compiled for AVX-512 needs a build for AVX2.

Below the table of speeds: how many times as fast pybatch is as each other engine, both in the precision that is best at
the case, and each precision of pybatch against the same. A ratio is of one round, in which both ran one after the
other: the median of the rounds, and from the least to the greatest.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import psutil
from engines.environment import engine_environment
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
MODULES = {
    "pybatch": "pybatch_llm",
    "llamacpp": "llamacpp",
    "ik_llamacpp": "ik_llamacpp",
    "transformers": "transformers_static",
    "openvino": "openvino_genai_batching",
    "ctranslate2": "ctranslate2_static",
    "vllm": "vllm_llm",
}


SPINNING_S = 0.25  # for which threads of the engine that ran before may spin: Intel's OpenMP does so for 0.2 s
SPEC = "NAME:PRECISION[,python=PATH][,model=PATH][,env=NAME=VALUE]..."


class Worker:
    """One engine's process, from a spec as in SPEC. env: set before what the spec sets."""

    def __init__(self, spec: str, threads: int, env: dict[str, str]) -> None:
        self.label, *options = spec.split(",")
        name, _, precision = self.label.partition(":")
        settings = dict(option.split("=", 1) for option in options if "=" in option)
        if name not in MODULES or not settings.keys() <= {"python", "model", "env"}:
            raise SystemExit(f"{spec!r}: expected {SPEC}, NAME in {[*MODULES]}")
        own = dict(option.removeprefix("env=").split("=", 1) for option in options if option.startswith("env="))
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
            env={**engine_environment(threads), **env, **own},
        )
        self.facts = {**self.read(), "env": own}

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
            results[worker.label][case] = {"tokens": counted, "seconds": [], "repeats_itself": True}
        first: dict[str, list] = {}
        for _ in range(rounds):
            for worker in workers:
                time.sleep(SPINNING_S)
                got = worker.run(requests)
                entry = results[worker.label][case]
                entry["seconds"].append(got["seconds"])
                entry["repeats_itself"] &= first.setdefault(worker.label, got["outputs"]) == got["outputs"]
                entry["used_avx512"] = entry.get("used_avx512") or got["used_avx512"]
                entry["peak_rss_mib"] = got["peak_rss_mib"]
                entry["anon_rss_mib"] = max(got["anon_rss_mib"], entry.get("anon_rss_mib", 0))
        for worker in workers:
            entry = results[worker.label][case]
            entry["tokens_per_s"] = counted / statistics.median(entry["seconds"])
            print(f"{case} {worker.label}: {entry['tokens_per_s']:.1f} tokens/s", file=sys.stderr, flush=True)
    return results


def ratios(results: dict[str, dict[str, dict]], cases: Iterable[str]) -> dict[str, dict[str, dict[str, dict]]]:
    """By pybatch's label or "best", by the other engine's name, by case: how many times as fast as the other's best."""
    ours = [label for label in results if label.startswith("pybatch:")]
    others = [label for label in results if label not in ours]

    def fastest(labels: list[str], case: str) -> str:
        return max(labels, key=lambda label: results[label][case]["tokens_per_s"])

    def ratio(label: str, other: str, case: str) -> dict:
        rounds = zip(results[label][case]["seconds"], results[other][case]["seconds"], strict=True)
        of_rounds = [theirs / mine for mine, theirs in rounds]
        spread = {"median": statistics.median(of_rounds), "least": min(of_rounds), "greatest": max(of_rounds)}
        return {"of": label, "to": other, **spread}

    return {
        row: {
            name: {
                case: ratio(
                    fastest(ours, case) if row == "best" else row,
                    fastest([label for label in others if label.split(":")[0] == name], case),
                    case,
                )
                for case in cases
            }
            for name in dict.fromkeys(label.split(":")[0] for label in others)
        }
        for row in (["best", *ours] if ours else [])
    }


def show(results: dict[str, dict[str, dict]], compared: dict, cases: Iterable[str]) -> None:
    table = Table(title="tokens/s (medians; prefill: all tokens, else output tokens)")
    table.add_column("engine")
    for case in cases:
        table.add_column(case, justify="right")
    table.add_column("peak RSS", justify="right")
    table.add_column("anonymous", justify="right")
    for label, by_case in results.items():
        memory = (max(entry[kind] for entry in by_case.values()) for kind in ("peak_rss_mib", "anon_rss_mib"))
        speeds = (f"{by_case[c]['tokens_per_s']:.0f}" for c in cases)
        table.add_row(label, *speeds, *(f"{mib / 1024:.2f} GiB" for mib in memory))
    times = Table(title="times as fast as the other's best (median of rounds, least to greatest)")
    for column in ("pybatch", "the other", *cases):
        times.add_column(column)
    for row, by_name in compared.items():
        for name, by_case in by_name.items():
            cells = (f"{r['median']:.2f} ({r['least']:.2f} to {r['greatest']:.2f})" for r in by_case.values())
            times.add_row(row.removeprefix("pybatch:"), name, *cells)
    console = Console(width=160)
    console.print(table)
    if compared:
        console.print(times)


def avx2_environment(folder: str) -> dict[str, str]:
    """Compiles what holds a process to AVX2, and what must be set for it to be."""
    library = f"{folder}/avx2_only.so"
    source = str(HERE / "engines/avx2_only.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    # glibc chooses its string functions before a library can run
    glibc = "glibc.cpu.hwcaps=" + ",".join(f"-AVX512{part}" for part in ("F", "VL", "BW", "DQ", "CD"))
    return {"LD_PRELOAD": library, "GLIBC_TUNABLES": glibc}


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    spec = {"action": "append", "default": [], "metavar": SPEC}
    parser.add_argument("--engine", **spec, help="repeatable (default: pybatch:int8 and pybatch:fp32)")
    parser.add_argument("--against", **spec, help="another one to compare with; repeatable")
    parser.add_argument("--workload", type=Path, default=HERE / "workloads/smollm2.json")
    parser.add_argument("--case", action="append", help="a case of the workload; repeatable (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--avx2", action="store_true", help="hold every engine to AVX2 (x86-64 Linux, CPUID faulting)")
    parser.add_argument("--json", type=Path, help="where to write everything")
    args = parser.parse_args()

    workload = json.loads(args.workload.read_text())
    unknown = set(args.case or []) - workload["cases"].keys()
    if unknown:
        parser.error(f"--case: unknown {sorted(unknown)}; the workload has {[*workload['cases']]}")
    cases = {name: workload["cases"][name] for name in args.case or workload["cases"]}
    specs = (args.engine or ["pybatch:int8", "pybatch:fp32"]) + args.against
    labels = [spec.split(",")[0] for spec in specs]
    if len({*labels}) < len(labels):
        parser.error(f"each NAME:PRECISION once, not {labels}")
    with tempfile.TemporaryDirectory() as folder:
        env = avx2_environment(folder) if args.avx2 else {}
        workers = [Worker(spec, args.threads, env) for spec in specs]
        results = measure(workers, cases, args.rounds)
    used = {label: {entry["used_avx512"] for entry in by_case.values()} for label, by_case in results.items()}
    for label, by_label in used.items():
        if args.avx2 and True in by_label:
            print(f"{label} used AVX-512 all the same: was it compiled for it?", file=sys.stderr)
        elif not args.avx2 and by_label == {False} and any(True in others for others in used.values()):
            print(f"{label} did not use AVX-512 as others did: was it compiled without?", file=sys.stderr)
    compared = ratios(results, cases)
    show(results, compared, cases)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "cpu": cpu_model(),
            "model": workload["model"],
            "instructions": "AVX2" if args.avx2 else "all",
            "threads": args.threads,
            "rounds": args.rounds,
            "command": " ".join(sys.argv),
            "engines": {w.label: w.facts for w in workers},
        }
        args.json.write_text(json.dumps({**facts, "results": results, "ratios": compared}, indent=1) + "\n")


if __name__ == "__main__":
    main()
