"""What --tune chooses against a full grid of its settings: how much of the best is lost, on three workloads of
any batch size and one where the caller gives max_num_seqs, so that it is to choose the others.

    python bench/tune_grid.py [--model smollm2-135m] [--quantization int8] [--quick] [--only WORKLOAD] [--json FILE]

Every point of the grid runs each workload once, as far as it can still be the best; then the FINALISTS of each run
again beside the tuned settings, in turns, and the fastest run of each counts: what else the machine does only adds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from speculation import copying

import pybatch
from pybatch import SamplingParams
from pybatch.engine import Engine, EngineConfig
from pybatch.tune.autotune import DRAFTS, Tuned, Tuning

FINALISTS, ROUNDS = 3, 3
HOPELESS = 1.2  # times the best so far, where a run is given up


@dataclass(frozen=True)
class Settings:
    max_num_seqs: int
    max_num_batched_tokens: int
    threads: int
    speculation: bool

    def __str__(self) -> str:
        drafts = "suffix" if self.speculation else "none"
        return f"{self.max_num_seqs} / {self.max_num_batched_tokens} / {self.threads} / {drafts}"


@dataclass(frozen=True)
class Workload:
    """outputs: tokens, of each prompt's answer. max_num_seqs: what the caller gives."""

    prompts: Sequence[list[int]]
    outputs: Sequence[int]
    max_num_seqs: int | None = None


def workloads(llm: pybatch.LLM, quick: bool) -> dict[str, Workload]:
    rng, vocab = random.Random(0), llm.engine.decoder.config.vocab_size

    def made(rows: int, low: int, high: int) -> list[list[int]]:
        return [[rng.randrange(vocab) for _ in range(rng.randint(low, high))] for _ in range(rows)]

    share = 0.2 if quick else 1.0
    answers, prompts, mixed = (max(2, round(share * rows)) for rows in (96, 8, 36))
    chats = [[{"role": "user", "content": copying(i)}] for i in range(2)]
    copies = [llm.get_tokenizer().apply_chat_template(each, add_generation_prompt=True) for each in chats]
    return {
        "long answers": Workload(made(answers, 16, 16), [16] * answers),
        "long prompts": Workload(made(prompts, 384, 384), [4] * prompts),
        "mixed lengths": Workload(made(mixed, 8, 120), [rng.randint(4, 40) for _ in range(mixed)]),
        "copies, max_num_seqs=2 given": Workload(copies, [8 if quick else 200] * 2, 2),
    }


def run(llm: pybatch.LLM, workload: Workload, settings: Settings, limit: float) -> float:
    """Seconds; infinite where it takes longer than the limit."""
    torch.set_num_threads(settings.threads)
    engine = Engine(
        llm.engine.decoder,
        None,
        EngineConfig(
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=max(settings.max_num_batched_tokens, settings.max_num_seqs),
            speculative_config=DRAFTS if settings.speculation else None,
            num_kv_blocks=6000,
        ),
    )
    begin = time.perf_counter()
    for number, (prompt, outputs) in enumerate(zip(workload.prompts, workload.outputs, strict=True)):
        params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True, detokenize=False)
        engine.add_request(str(number), prompt, params)
    while engine.has_unfinished():
        engine.step()
        if time.perf_counter() - begin > limit:
            return float("inf")
    return time.perf_counter() - begin


def tune(llm: pybatch.LLM, max_num_seqs: int | None) -> tuple[Settings, Tuned]:
    made = Tuning(llm.engine.decoder, EngineConfig(max_num_seqs=max_num_seqs), None).run()
    print(f"{made} in {made.seconds:.1f} s", flush=True)
    threads, drafts = made.threads or torch.get_num_threads(), made.speculative_config is not None
    return Settings(made.max_num_seqs, made.max_num_batched_tokens, threads, drafts), made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="this workload: the others stay in the JSON as they are")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    llm = pybatch.LLM(args.model, quantization=args.quantization, num_kv_blocks=256, max_model_len=2048)
    of_all = {name: each for name, each in workloads(llm, args.quick).items() if args.only in (None, name)}
    if not of_all:
        parser.error(f"--only: expected one of {', '.join(workloads(llm, args.quick))}, got {args.only!r}")
    for each in of_all.values():  # what is made once is made before
        run(llm, each, Settings(8, 512, torch.get_num_threads(), False), 1.0)
    tuned = {most: tune(llm, most) for most in dict.fromkeys(each.max_num_seqs for each in of_all.values())}
    threads = max(2, torch.get_num_threads())
    sizes, budgets = ((16, 64), (512,)) if args.quick else ((16, 64, 256), (256, 512, 2048))
    told = json.loads(args.json.read_text())["workloads"] if args.only and args.json and args.json.exists() else {}
    for name, workload in of_all.items():
        limit, seconds, chosen = float("inf"), {}, tuned[workload.max_num_seqs][0]
        grid = [
            Settings(*each)
            for each in itertools.product(
                sizes if workload.max_num_seqs is None else [workload.max_num_seqs],
                budgets,
                (threads, 1),
                (False, True),
            )
        ]
        for settings in grid:
            seconds[settings] = run(llm, workload, settings, limit * HOPELESS)
            limit = min(limit, seconds[settings])
        finalists = sorted(grid, key=lambda each: seconds[each])[:FINALISTS]
        best = {each: float("inf") for each in [chosen, *finalists]}
        for _ in range(ROUNDS):
            for each in best:
                best[each] = min(best[each], run(llm, workload, each, float("inf")))
        fastest = min(finalists, key=lambda each: best[each])
        told[name] = {
            "tuned": str(chosen),
            "tuned_s": best[chosen],
            "best": str(fastest),
            "best_s": best[fastest],
            "loss": best[chosen] / best[fastest] - 1,
            "grid": {str(each): None if s == float("inf") else s for each, s in seconds.items()},
        }
        print(f"{name}: {told[name]['loss']:+.1%}", flush=True)

    table = Table(title=f"{args.model} {args.quantization}: sequences / tokens a step / threads / drafts")
    for column in ("workload", "tuned", "s", "best of the grid", "s", "loss"):
        table.add_column(column)
    for name, each in told.items():
        cells = (f"{each['tuned_s']:.2f}", each["best"], f"{each['best_s']:.2f}", f"{each['loss']:+.1%}")
        table.add_row(name, each["tuned"], *cells)
    Console(width=140).print(table)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "cpu": platform.processor() or platform.machine(),
            "model": args.model,
            "quantization": args.quantization,
            "load_average": os.getloadavg()[0],
            "tuned": [{**asdict(made), "given": most} for most, (_, made) in tuned.items()],
        }
        args.json.write_text(json.dumps({**facts, "workloads": told}, indent=1) + "\n")


if __name__ == "__main__":
    main()
