"""Where a decode step's time goes: each op, what dispatching the ops costs, and the Python around them.

    python bench/step_profile.py [--precision int8] [--sequences 1,8,32,64] [--json PATH]

Prompts of 32 tokens, 64 new ones each, greedy. Steps that only decode are counted, and of them medians are shown. An
op's time is its whole call; `dispatch` is what of it is spent outside the kernel: the calls of a step times what the op
takes on no rows at all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import pybatch
from pybatch import ops
from pybatch.engine.engine import Engine
from pybatch.engine.runner import Runner
from pybatch.engine.sampler import Sampler
from pybatch.engine.scheduler import Scheduler
from pybatch.model.layers import DenseLinear, GGUFLinear, Int8Linear

PROMPT, NEW = 32, 64
OPS: dict[str, list[tuple[object, str]]] = {
    "embedding": [(ops, "embedding")],
    "matmuls": [(linear, "__call__") for linear in (DenseLinear, Int8Linear, GGUFLinear)],
    "rope_kv_write": [(ops, "rope_kv_write")],
    "paged_attention": [(ops, "paged_attention")],
    "sample": [(ops, "sample")],
}
PARTS = {"schedule": (Scheduler, "schedule"), "build batch": (Runner, "build"), "sampler": (Sampler, "sample")}


class Stopwatch:
    """Adds up, by name, the time spent in functions it has wrapped; `calls` counts them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, int] = defaultdict(int)

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        function: Callable[..., object] = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start
                self.calls[name] += 1

        setattr(owner, attribute, timed)


def dispatch_seconds(rounds: int = 2000) -> float:
    """One op's call on a matrix of no rows."""
    nothing, weight = torch.empty(0, 64), ops.pack_dense(torch.zeros(16, 64))
    out = torch.empty(0, 16)
    start = time.perf_counter()
    for _ in range(rounds):
        ops.matmul_dense(nothing, weight, out=out)
    return (time.perf_counter() - start) / rounds


def profile(llm: pybatch.LLM, watch: Stopwatch, sequences: int, dispatch: float) -> dict[str, float]:
    """Milliseconds of each part of the median decode step."""
    params = pybatch.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    prompts = [[2 + (i * PROMPT + j) % 10_000 for j in range(PROMPT)] for i in range(sequences)]
    steps: list[dict[str, float]] = []
    inner = Engine._step

    def step(engine: Engine) -> object:
        watch.seconds.clear()
        watch.calls.clear()
        start = time.perf_counter()
        outputs = inner(engine)
        total = time.perf_counter() - start
        parts = dict(watch.seconds)
        in_ops = sum(parts.get(op, 0.0) for op in OPS)
        parts["sampler"] = parts.get("sampler", 0.0) - parts.get("sample", 0.0)
        parts["other Python"] = total - in_ops - sum(parts.get(part, 0.0) for part in PARTS)
        parts["step"] = total
        parts["of it dispatch"] = dispatch * sum(watch.calls[op] for op in OPS)
        steps.append(parts)
        return outputs

    Engine._step = step  # type: ignore[method-assign,assignment]
    try:
        llm.generate(prompts, params, use_tqdm=False)
        steps.clear()
        llm.generate(prompts, params, use_tqdm=False)
    finally:
        Engine._step = inner  # type: ignore[method-assign]
    decode = steps[-(NEW - 4) : -2]  # the prompts' steps come first, and the last ones have fewer sequences
    return {name: 1e3 * statistics.median(s.get(name, 0.0) for s in decode) for name in decode[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="int8", help="fp32 or a quantization (default: int8)")
    parser.add_argument("--sequences", default="1,8,32,64")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    dispatch = dispatch_seconds()
    watch = Stopwatch()
    for op, places in OPS.items():
        for owner, attribute in places:
            watch.wrap(owner, attribute, op)
    for name, (owner, attribute) in PARTS.items():
        watch.wrap(owner, attribute, name)
    llm = pybatch.LLM(
        args.model,
        quantization=None if args.precision == "fp32" else args.precision,
        max_model_len=1024,
        enable_prefix_caching=False,
        threads=args.threads,
    )
    results = {n: profile(llm, watch, n, dispatch) for n in map(int, args.sequences.split(","))}

    table = Table(title=f"ms of a decode step, {args.model} {args.precision}, by sequences")
    table.add_column("part")
    for n in results:
        table.add_column(str(n), justify="right")
    for name in dict.fromkeys(name for parts in results.values() for name in parts):
        cells = (f"{p.get(name, 0.0):.2f} ({p.get(name, 0.0) / p['step']:4.0%})" for p in results.values())
        table.add_row(name, *cells)
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, "precision": args.precision, "milliseconds": results}))


if __name__ == "__main__":
    main()
