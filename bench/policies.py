"""Batching policies side by side on three workloads, and what batching and sharing KV blocks gain.

    python bench/policies.py [--quick] [--part NAME ...] [--policy TEXT ...] [--json PATH] [--png PATH]

policies: documents, all of one size and there at the start; chat, which arrives by a Poisson process at a share of the
    rate that `continuous` can keep up with; long tail, whose outputs are mostly short and sometimes very long. Each
    round runs every policy once, so that a slow spell of the machine hits all alike; figures are medians of the rounds.
    Occupancy is the mean of sequences in a step over the most there may be; KV use that of the blocks in use after a
    step over the pool. CPU is the process's time, which other programs change least. TTFT is from a request's arrival;
    TPOT a request's mean time per token after its first.
speedup: 64 requests at once against one at a time, the least times of the rounds, and what the machine allows: the
    weights must be read in each step, and the products of all sequences computed, at the rates measured here.
sharing: tokens found in the prefix cache, and KV blocks of samples and of beams against those of separate requests.
thrash: 256 requests over a tenth of the KV blocks that they would use at once, against all of them.

One engine runs at a time, in this process, without tokenizer and, but for sharing, without prefix cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

import pybatch
from pybatch import _C, SamplingParams
from pybatch.engine import Engine, EngineConfig, RequestOutput
from pybatch.engine.step_parts import decode_step
from pybatch.model import Decoder

POLICIES = ["continuous", "static(batch_size=32)", "dynamic(max_batch=32, max_wait=0.2)", "micro(micro_batch=8)"]
PLACES, BLOCK = 32, 16
LOAD = 0.7  # of the chat workload, as a share of what continuous batching keeps up with


@dataclass(frozen=True)
class Work:
    """A request: token ids, tokens of output, and when it comes, in seconds after the start."""

    prompt: list[int]
    output: int
    arrival: float = 0.0
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A workload's way through an engine. trace: after each step the seconds since the start, the sequences that were
    in it, and the KV blocks in use."""

    outputs: list[RequestOutput]
    seconds: float
    cpu_seconds: float
    computed_tokens: int
    trace: list[tuple[float, int, int]]


def run(engine: Engine, works: list[Work]) -> Run:
    """The outputs are in no order."""
    coming = sorted(works, key=lambda work: -work.arrival)
    outputs: list[RequestOutput] = []
    trace: list[tuple[float, int, int]] = []
    metrics = engine.metrics
    begin, cpu, tokens = time.perf_counter(), time.process_time(), metrics.step_tokens
    while coming or engine.has_unfinished():
        now = time.perf_counter() - begin
        while coming and coming[-1].arrival <= now:
            work = coming.pop()
            params = {"temperature": 0, "max_tokens": work.output, "ignore_eos": True, **work.params}
            engine.add_request(
                str(len(coming)), work.prompt, SamplingParams(**params), arrival_time=begin + work.arrival
            )
        if not engine.has_unfinished():
            time.sleep(max(0.0, coming[-1].arrival - now))
            continue
        before = metrics.step_sequences
        outputs += engine.step()
        if metrics.step_sequences > before:
            here = time.perf_counter() - begin
            trace.append((here, metrics.step_sequences - before, engine.num_kv_blocks_used))
    assert all(output.error is None for output in outputs)
    seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    return Run(outputs, seconds, used, metrics.step_tokens - tokens, trace)


def token_ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(5, 40_000) for _ in range(count)]


def engine_of(decoder: Decoder, **config: Any) -> Engine:
    config = {"enable_prefix_caching": False, "max_model_len": 1024, "block_size": BLOCK, **config}
    return Engine(decoder, None, EngineConfig(**config))


def blocks_of(*lengths: int) -> int:
    return sum(-(-length // BLOCK) for length in lengths)


# ---- the policies ----


def documents(requests: int) -> list[Work]:
    rng = random.Random(1)
    return [Work(token_ids(rng, 128), 32) for _ in range(requests)]


def chat(requests: int, rate: float) -> list[Work]:
    """rate: requests a second; math.inf for all at once."""
    rng = random.Random(2)
    works, now = [], 0.0
    for _ in range(requests):
        works.append(Work(token_ids(rng, rng.randint(20, 120)), rng.randint(16, 64), now))
        now += rng.expovariate(rate) if math.isfinite(rate) else 0.0
    return works


def long_tail(requests: int) -> list[Work]:
    rng = random.Random(3)
    lengths = [min(256, max(4, round(rng.lognormvariate(3.0, 1.0)))) for _ in range(requests)]
    return [Work(token_ids(rng, 32), length) for length in lengths]


def measure_policies(decoder: Decoder, args: argparse.Namespace) -> dict[str, Any]:
    pool = PLACES * blocks_of(512)
    engines = {
        policy: engine_of(decoder, policy=policy, max_num_seqs=PLACES, num_kv_blocks=pool) for policy in args.policy
    }
    requests = 40 if args.quick else 96
    for engine in engines.values():
        run(engine, documents(PLACES))  # graphs of all sizes are captured
    rate = args.rate
    if rate is None:
        works = chat(requests, math.inf)
        rate = LOAD * requests / run(engine_of(decoder, max_num_seqs=PLACES, num_kv_blocks=pool), works).seconds
    workloads = {
        "documents": documents(requests),
        f"chat, {rate:.1f}/s": chat(requests, rate),
        "long tail": long_tail(requests),
    }
    results: dict[str, dict[str, Any]] = {}
    for name, works in workloads.items():
        runs: dict[str, list[Run]] = {policy: [] for policy in engines}
        for _ in range(args.rounds):
            for policy, engine in engines.items():
                runs[policy].append(run(engine, works))
                print(f"{name}, {policy}: {runs[policy][-1].seconds:.1f} s", file=sys.stderr, flush=True)
        results[name] = {policy: figures(each, pool) for policy, each in runs.items()}
        same = [sorted((o.prompt_token_ids, o.outputs[0].token_ids) for o in each[0].outputs) for each in runs.values()]
        assert all(each == same[0] for each in same), f"{name}: a policy changes answers"
    return results


def figures(runs: list[Run], pool: int) -> dict[str, Any]:
    """The medians over the rounds, and the first round's trace."""

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(map(of, runs))

    def at(q: float, name: str) -> float:
        return median(lambda each: quantile([getattr(output.metrics, name) for output in each.outputs], q))

    tokens = sum(output.metrics.num_output_tokens for output in runs[0].outputs)
    return {
        "completion_s": median(lambda each: each.seconds),
        "cpu_s": median(lambda each: each.cpu_seconds),
        "tokens_per_s": median(lambda each: tokens / each.seconds),
        **{f"{name}_p{q}_s": at(q / 100, name) for name in ("ttft", "tpot") for q in (50, 99)},
        "occupancy": median(lambda each: statistics.mean(row[1] for row in each.trace) / PLACES),
        "kv_mean": median(lambda each: statistics.mean(row[2] for row in each.trace) / pool),
        "kv_peak": median(lambda each: max(row[2] for row in each.trace) / pool),
        "steps": len(runs[0].trace),
        "seconds_by_round": [each.seconds for each in runs],
        "trace": [(round(here, 4), sequences, blocks) for here, sequences, blocks in runs[0].trace],
    }


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


# ---- what batching gains ----


def measure_speedup(decoder: Decoder, args: argparse.Namespace) -> dict[str, Any]:
    at_once, alone = 64, 4 if args.quick else 8
    rng = random.Random(4)
    works = [Work(token_ids(rng, 32), 64) for _ in range(at_once)]
    engines = {places: engine_of(decoder, max_num_seqs=places, num_kv_blocks=at_once * 8) for places in (1, at_once)}
    runs: dict[int, list[Run]] = {1: [], at_once: []}
    for i in range(args.rounds + 1):  # the first warms up
        for places, engine in engines.items():
            done = run(engine, works if places > 1 else works[:alone])
            if i:
                runs[places].append(done)
    each = {1: alone, at_once: at_once}
    seconds = {places: min(one.seconds for one in done) / each[places] for places, done in runs.items()}
    cpu = {places: min(one.cpu_seconds for one in done) / each[places] for places, done in runs.items()}
    rates = {name: max(_C.measure_ceiling(name, 0.03) for _ in range(30)) for name in ("read_bytes", "int8_ops")}
    steps = step_milliseconds(args)
    weights = decoder.weight_bytes()
    # A step cannot take less than reading the weights, nor than two operations for each of them and each sequence.
    floors = {n: 1e3 * max(weights / rates["read_bytes"], 2 * n * weights / rates["int8_ops"]) for n in each}
    return {
        "requests": at_once,
        "one_at_a_time": alone,
        "seconds_per_request": seconds,
        "cpu_seconds_per_request": cpu,
        "speedup": seconds[1] / seconds[at_once],
        "cpu_speedup": cpu[1] / cpu[at_once],
        "step_ms": steps,
        "step_speedup": at_once * steps[1]["step"] / steps[at_once]["step"],
        "weight_bytes": weights,
        "rates": rates,
        "floor_ms": floors,
        "floor_speedup": at_once * floors[1] / floors[at_once],
    }


def step_milliseconds(args: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Of decode steps of 1 and of 64 sequences, by what they are spent on."""
    llm = pybatch.LLM(args.model, quantization="int8", max_model_len=1024, enable_prefix_caching=False)
    parts = {n: decode_step(llm.engine, n, context=32, steps=58) for n in (1, 64)}
    return {n: {name: 1e3 * seconds for name, seconds in each.items()} for n, each in parts.items()}


# ---- shared KV blocks ----


def measure_sharing(decoder: Decoder, args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(5)
    prefix = token_ids(rng, 512)
    works = [Work(prefix + token_ids(rng, 16), 8) for _ in range(16 if args.quick else 64)]
    engine = engine_of(decoder, max_num_seqs=64, num_kv_blocks=4096, enable_prefix_caching=True)
    hits = sum(output.num_cached_tokens for output in run(engine, works).outputs)
    ideal = (len(works) - 1) * len(prefix)

    prompts = [token_ids(rng, 512) for _ in range(8)]
    output = 16 if args.quick else 64
    cases = {
        "8 requests": [Work(prompt, output) for prompt in prompts],
        "n = 8": [Work(prompts[0], output, params={"n": 8, "temperature": 1.0, "seed": 1})],
        "8 beams": [Work(prompts[0], output, params={"n": 8, "use_beam_search": True})],
    }
    blocks = {}
    for name, case in cases.items():
        engine = engine_of(decoder, max_num_seqs=8, max_num_batched_tokens=4096, num_kv_blocks=1024)
        blocks[name] = max(row[2] for row in run(engine, case).trace)
    return {"requests": len(works), "prefix": 512, "hit_tokens": hits, "ideal_tokens": ideal, "peak_blocks": blocks}


# ---- too few KV blocks ----


def measure_thrash(decoder: Decoder, args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(6)
    works = [Work(token_ids(rng, rng.randint(16, 64)), rng.randint(16, 48)) for _ in range(64 if args.quick else 256)]
    demand = blocks_of(*(len(work.prompt) + work.output for work in works))
    results: dict[str, Any] = {"requests": len(works), "demand_blocks": demand}
    engines = {
        name: engine_of(decoder, max_num_seqs=len(works), num_kv_blocks=blocks, max_model_len=112)
        for name, blocks in (("full", demand), ("tenth", demand // 10))
    }
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for _ in range(args.rounds):
        for name, engine in engines.items():
            runs[name].append(run(engine, works))
    needed = sum(len(work.prompt) + work.output - 1 for work in works)
    tokens = sum(work.output for work in works)
    for name, done in runs.items():
        seconds = min(each.seconds for each in done)
        results[name] = {
            "finished": len(done[0].outputs),
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "recomputed": max(each.computed_tokens for each in done) / needed - 1,
            "preemptions": engines[name].metrics.preemptions / args.rounds,
            "mean_sequences": statistics.mean(row[1] for row in done[0].trace),
        }
    return results


PARTS = {
    "policies": measure_policies,
    "speedup": measure_speedup,
    "sharing": measure_sharing,
    "thrash": measure_thrash,
}


# ---- tables and plots ----


def show_policies(results: dict[str, Any], console: Console) -> None:
    for name, by_policy in results.items():
        table = Table(title=name)
        for column in (
            "policy",
            "tokens/s",
            "all done",
            "CPU",
            "TTFT p50",
            "p99",
            "TPOT p50",
            "p99",
            "occupancy",
            "KV mean",
        ):
            table.add_column(column, justify="left" if column == "policy" else "right")
        for policy, row in by_policy.items():
            table.add_row(
                policy,
                f"{row['tokens_per_s']:.0f}",
                f"{row['completion_s']:.1f} s",
                f"{row['cpu_s']:.1f} s",
                *(f"{1e3 * row[f'ttft_p{q}_s']:.0f} ms" for q in (50, 99)),
                *(f"{1e3 * row[f'tpot_p{q}_s']:.1f} ms" for q in (50, 99)),
                f"{row['occupancy']:.0%}",
                f"{row['kv_mean']:.0%}",
            )
        console.print(table)


def show_speedup(found: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{found['requests']} requests at once against one at a time")
    for column in ("", "1", "64", "64 x first / second"):
        table.add_column(column, justify="right")
    steps, floors, rates = found["step_ms"], found["floor_ms"], found["rates"]
    by_request, by_cpu = found["seconds_per_request"], found["cpu_seconds_per_request"]
    table.add_row("ms a request", *(f"{1e3 * by_request[n]:.1f}" for n in (1, 64)), f"{found['speedup']:.1f}")
    table.add_row("CPU ms a request", *(f"{1e3 * by_cpu[n]:.1f}" for n in (1, 64)), f"{found['cpu_speedup']:.1f}")
    table.add_row("ms a decode step", *(f"{steps[n]['step']:.2f}" for n in (1, 64)), f"{found['step_speedup']:.1f}")
    for name in sorted(steps[64], key=lambda name: -steps[64][name])[1:7]:
        table.add_row(f"of it {name}", *(f"{steps[n].get(name, 0):.2f}" for n in (1, 64)), "")
    table.add_row("least, ms", *(f"{floors[n]:.2f}" for n in (1, 64)), f"{found['floor_speedup']:.1f}")
    console.print(table)
    console.print(
        f"{found['weight_bytes'] / 1e6:.0f} MB of weights; reading {rates['read_bytes'] / 1e9:.1f} GB/s, "
        f"int8 {rates['int8_ops'] / 1e9:.0f} GOP/s"
    )


def show_sharing(found: dict[str, Any], console: Console) -> None:
    share = found["hit_tokens"] / found["ideal_tokens"]
    console.print(f"{found['requests']} prompts with a common prefix of 512 tokens: {share:.1%} of the ideal hits")
    separate = found["peak_blocks"]["8 requests"]
    for name, blocks in found["peak_blocks"].items():
        console.print(f"KV blocks of {name}: {blocks}, {blocks / separate:.2f} of separate requests")


def show_thrash(found: dict[str, Any], console: Console) -> None:
    for name in ("full", "tenth"):
        row = found[name]
        console.print(
            f"KV pool, {name}: {row['finished']} of {found['requests']} finish, {row['tokens_per_s']:.0f} tokens/s, "
            f"{row['recomputed']:.2%} of the tokens recomputed, {row['preemptions']:.0f} preemptions, "
            f"{row['mean_sequences']:.1f} sequences a step"
        )


SHOW = {"policies": show_policies, "speedup": show_speedup, "sharing": show_sharing, "thrash": show_thrash}


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    bars = [
        ("output tokens/s", ["tokens_per_s"], 1),
        ("TTFT p50 and p99, s", ["ttft_p50_s", "ttft_p99_s"], 1),
        ("TPOT p50 and p99, ms", ["tpot_p50_s", "tpot_p99_s"], 1e3),
    ]
    rows = len(bars) + 1
    figure, grid = plt.subplots(rows, len(results), figsize=(5 * len(results), 2.7 * rows), layout="constrained")
    for column, (name, by_policy) in zip(grid.T, results.items(), strict=True):
        colors = dict(zip(by_policy, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
        for axes, (label, keys, scale) in zip(column, bars, strict=False):
            for place, (policy, row) in enumerate(by_policy.items()):
                for i, key in enumerate(keys):
                    axes.bar(place + 0.4 * i, scale * row[key], 0.38, color=colors[policy], alpha=1 - 0.5 * i)
            axes.set(ylabel=label, title=name if axes is column[0] else "")
            axes.set_xticks([0.2 * (len(keys) - 1) + i for i in range(len(by_policy))])
            axes.set_xticklabels([policy.partition("(")[0] for policy in by_policy])
            axes.grid(alpha=0.25, axis="y")
        axes = column[-1]
        for policy, row in by_policy.items():
            times, sequences = zip(*((here, count) for here, count, _ in row["trace"]), strict=True)
            axes.step(times, sequences, where="pre", color=colors[policy], linewidth=1, label=policy)
        axes.set(xlabel="s", ylabel="sequences in a step", ylim=(0, PLACES + 1))
        axes.grid(alpha=0.25)
    grid[-1][-1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable (default: all)")
    parser.add_argument("--policy", action="append", metavar="TEXT", help="as EngineConfig takes it; repeatable")
    parser.add_argument("--rate", type=float, help=f"requests/s of chat (default: {LOAD} of what can be kept up with)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--quick", action="store_true", help="fewer requests, one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path, help="plots of the policies; needs matplotlib")
    args = parser.parse_args()
    args.policy = args.policy or POLICIES
    args.rounds = 1 if args.quick else args.rounds

    torch.set_num_threads(args.threads)
    loads = [os.getloadavg()[0]]
    llm = pybatch.LLM(args.model, quantization="int8", num_kv_blocks=64, max_model_len=1024, threads=args.threads)
    results: dict[str, Any] = {}
    for part in args.part or PARTS:
        results[part] = PARTS[part](llm.engine.decoder, args)
        loads.append(os.getloadavg()[0])
        SHOW[part](results[part], Console(width=140))
        if args.json:
            facts = {
                "date": date.today().isoformat(),
                "machine": platform.machine(),
                "cores": psutil.cpu_count(logical=False),
                "load_average": [round(load, 1) for load in loads],
                "command": " ".join(sys.argv),
                "threads": args.threads,
                "rounds": args.rounds,
            }
            args.json.write_text(json.dumps({**facts, "results": results}))
    if args.png and "policies" in results:
        draw(results["policies"], args.png)


if __name__ == "__main__":
    main()
