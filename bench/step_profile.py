"""Where a decode step's time goes: each kernel, and the Python around them.

    python bench/step_profile.py [--precision int8] [--sequences 1,8,32,64] [--json PATH]

Prompts of 32 tokens, 64 new ones each, greedy. Steps that only decode are counted, and of them medians are shown.
`other` is what of the step is in none of the parts above it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import pybatch
from pybatch.engine.engine import Engine
from pybatch.engine.execution import graphs, step_inputs
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.ops import CpuGraph

PROMPT, NEW = 32, 64
PARTS = {
    "schedule": (Scheduler, "schedule"),
    "inputs": (step_inputs.StepInputs, "fill"),
    "sampler": (Sampler, "sample"),
}


class Stopwatch:
    """Adds up, by name, the time spent in functions it has wrapped and in the kernels of the graphs it has made."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        function: Callable[..., object] = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, attribute, timed)

    def graph(self) -> CpuGraph:
        watch = self

        class TimedGraph(CpuGraph):
            def replay(self) -> None:
                for name, seconds in self.timed_replay().items():
                    watch.seconds[name] += seconds

        return TimedGraph()


def profile(llm: pybatch.LLM, watch: Stopwatch, sequences: int) -> dict[str, float]:
    """Milliseconds of each part of the median decode step."""
    params = pybatch.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    prompts = [[2 + (i * PROMPT + j) % 10_000 for j in range(PROMPT)] for i in range(sequences)]
    steps: list[dict[str, float]] = []
    inner = Engine._step

    def step(engine: Engine) -> object:
        watch.seconds.clear()
        start = time.perf_counter()
        outputs = inner(engine)
        total = time.perf_counter() - start
        parts = dict(watch.seconds)
        steps.append({**parts, "other": total - sum(parts.values()), "step": total})
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

    watch = Stopwatch()
    graphs.CpuGraph = watch.graph  # type: ignore[misc,assignment]
    for name, (owner, attribute) in PARTS.items():
        watch.wrap(owner, attribute, name)
    llm = pybatch.LLM(
        args.model,
        quantization=None if args.precision == "fp32" else args.precision,
        max_model_len=1024,
        enable_prefix_caching=False,
        threads=args.threads,
    )
    results = {n: profile(llm, watch, n) for n in map(int, args.sequences.split(","))}

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
