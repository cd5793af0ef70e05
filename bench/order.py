"""What the order of a job's rows is worth: file order against the order in which a job admits them.

    python bench/order.py [--model smollm2-135m] [--rounds 3] [--json PATH]

Rows of a few long prefixes with an end of their own, shuffled, greedy, once with room for every prefix in the KV pool
and once with room for few. Prefix hits are prompt tokens found in the cache, as a share of the ideal: each prefix is
computed once. Rounds are interleaved, so that a slow spell of the machine hits both orders alike; times are wall and
CPU time of the process, the medians (and the least). The cost of the order itself is in them.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from pybatch import LLM, SamplingParams
from pybatch.jobs.order.admission import AdmissionOrder

Row = tuple[int, list[int], int]
"""Its number, token ids and output tokens."""


def make_rows(args: argparse.Namespace, vocab_size: int) -> list[Row]:
    rng = random.Random(0)
    prefixes = [[rng.randrange(10, vocab_size) for _ in range(args.prefix)] for _ in range(args.groups)]
    prompts = [
        prefixes[i % args.groups] + [rng.randrange(10, vocab_size) for _ in range(rng.randint(8, 48))]
        for i in range(args.rows)
    ]
    rng.shuffle(prompts)
    return [(i, prompt, rng.randint(args.output // 2, 3 * args.output // 2)) for i, prompt in enumerate(prompts)]


def in_file_order(rows: list[Row], block_size: int) -> Iterator[Row]:
    yield from rows


def in_admission_order(rows: list[Row], block_size: int) -> Iterator[Row]:
    order: AdmissionOrder[Row] = AdmissionOrder(block_size=block_size)
    for row in rows:
        while not order.has_room:
            yield order.pop()[0]
        order.push(row, row[1], row[2])
    while len(order):
        yield order.pop()[0]


ORDERS = {"file order": in_file_order, "admission order": in_admission_order}


def run(llm: LLM, rows: list[Row], name: str) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Feeds the engine as a job does: twice as many rows as can run at once are in its queue."""
    engine = llm.engine
    assert engine.reset_prefix_cache()
    steps, cached, outputs = engine.metrics.step_tokens, 0, {}
    wall, cpu = time.perf_counter(), time.process_time()
    feed = ORDERS[name](rows, engine.config.block_size)
    row = next(feed, None)
    while row is not None or engine.has_unfinished():
        while row is not None and engine.num_unfinished() < 2 * engine.config.max_num_seqs:
            number, prompt, output = row
            params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=output, detokenize=False)
            engine.add_request(str(number), prompt, params, index=number)
            row = next(feed, None)
        for finished in engine.step():
            cached += finished.num_cached_tokens
            outputs[finished.request_id] = finished.outputs[0].token_ids
    figures = {
        "cached_tokens": cached,
        "computed_tokens": engine.metrics.step_tokens - steps,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }
    return figures, outputs


def measure(llm: LLM, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    rows = make_rows(args, 40_000)
    size = llm.engine.config.block_size
    ideal = (args.rows - args.groups) * (args.prefix // size) * size
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ORDERS}
    answers: dict[str, dict[str, list[int]]] = {}
    for _ in range(args.rounds):
        for name in ORDERS:
            figures, answers[name] = run(llm, rows, name)
            rounds[name].append(figures)
    same = all(answer == answers["file order"] for answer in answers.values())
    if not same:
        raise SystemExit("the answers differ")
    return {
        name: {
            "hits_of_ideal": figures[0]["cached_tokens"] / ideal,
            "computed_tokens": figures[0]["computed_tokens"],
            **{
                f"{clock}_{which}": of(each[clock] for each in figures)
                for clock in ("wall_s", "cpu_s")
                for which, of in (("median", statistics.median), ("least", min))
            },
        }
        for name, figures in rounds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=400, help="tokens")
    parser.add_argument("--output", type=int, default=16, help="mean of the output tokens")
    parser.add_argument("--pool", type=int, nargs="+", default=[2048, 192], help="KV blocks, of each case")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    results: dict[str, dict[str, dict[str, Any]]] = {}
    for blocks in args.pool:
        llm = LLM(args.model, quantization="int8", num_kv_blocks=blocks, max_model_len=1024)
        results[f"{blocks} blocks"] = measure(llm, args)

    table = Table(title=f"{args.rows} rows of {args.groups} prefixes of {args.prefix} tokens, {args.rounds} rounds")
    for column in ("KV pool", "order", "hits of the ideal", "tokens computed", "wall s (least)", "CPU s (least)"):
        table.add_column(column, justify="right")
    for case, by_order in results.items():
        for name, of in by_order.items():
            clocks = (f"{of[f'{clock}_median']:.1f} ({of[f'{clock}_least']:.1f})" for clock in ("wall_s", "cpu_s"))
            table.add_row(case, name, f"{of['hits_of_ideal']:.1%}", f"{of['computed_tokens']:,}", *clocks)
    Console(width=120).print(table)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "arguments": {name: value for name, value in vars(args).items() if name != "json"},
        }
        args.json.write_text(json.dumps({**facts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
