"""How many tokens are computed twice where the KV pool is a tenth of what the requests would use at once.

The real scheduler on a virtual clock, without a model: a step takes as long as 30 tokens and its own tokens. Each shape
is 256 requests that are all there from the beginning. `recomputed` are tokens that a preempted sequence had computed
before, over all that were computed; `speed` is the throughput, of 1 with a pool that holds all.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pybatch.engine import EngineConfig, SamplingParams
from pybatch.engine.intake import Intake
from pybatch.engine.make_scheduler import make_scheduler
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.sequence import Request, Sequence

REQUESTS, STEP_TOKENS = 256, 30


@dataclass(frozen=True)
class Shape:
    """prompt, output: draw one request's numbers of tokens. bound: its max_tokens, None for the context."""

    name: str
    prompt: Callable[[random.Random], int]
    output: Callable[[random.Random], int]
    bound: Callable[[int], int | None]


def exactly(tokens: int) -> Callable[[random.Random], int]:
    return lambda rng: tokens


def about(tokens: int, spread: float) -> Callable[[random.Random], int]:
    """Log-normal: most are shorter, some much longer."""
    return lambda rng: max(1, int(tokens * rng.lognormvariate(0, spread)))


SHAPES = (
    Shape("short prompts, all to max_tokens", about(100, 0.3), exactly(200), lambda output: output),
    Shape("long prompts, all to max_tokens", about(2000, 0.3), exactly(500), lambda output: output),
    Shape("short prompts, no max_tokens", about(100, 0.3), about(200, 0.5), lambda output: None),
    Shape("long prompts, no max_tokens", about(2000, 0.5), about(300, 0.5), lambda output: None),
    Shape("long tail, no max_tokens", about(200, 0.5), about(150, 1.2), lambda output: None),
    Shape("long outputs, no max_tokens", about(50, 0.3), about(1500, 0.4), lambda output: None),
    Shape("max_tokens 4 times too large", about(300, 0.5), about(250, 0.5), lambda output: 4 * 250),
    Shape("two kinds", lambda rng: rng.choice((50, 1500)), lambda rng: rng.choice((20, 600)), lambda output: None),
)


@dataclass
class Figures:
    steps: int = 0
    preemptions: int = 0
    computed: int = 0
    recomputed: int = 0
    sequences: int = 0
    clock: float = 0.0
    cpu_s: float = 0.0


def run(shape: Shape, share: float, *, seed: int = 0, **settings: object) -> Figures:
    """share: of the blocks that all requests would use at once."""
    rng = random.Random(seed)
    lengths = [(shape.prompt(rng), shape.output(rng)) for _ in range(REQUESTS)]
    config = EngineConfig(**{"max_num_seqs": REQUESTS, "max_num_batched_tokens": 512, **settings})  # type: ignore[arg-type]
    blocks = [-(-(prompt + output) // config.block_size) for prompt, output in lengths]
    num_blocks = max(int(share * sum(blocks)), max(blocks) + 1)
    figures = Figures()
    pool = BlockPool(num_blocks)
    scheduler = make_scheduler(config, pool, clock=lambda: figures.clock)
    context = max(num_blocks * config.block_size - 1, max(map(sum, lengths)))
    sizes = {"max_num_seqs": REQUESTS, "num_kv_blocks": num_blocks, "block_size": config.block_size}
    intake = Intake(None, eos_ids=frozenset(), vocab_size=2**62, max_model_len=context, seed=0, **sizes)
    left: dict[Request, int] = {}
    for i, (prompt, output) in enumerate(lengths):
        params = SamplingParams(temperature=0, max_tokens=shape.bound(output), detokenize=False)
        ids = [i * 10**6 + j for j in range(prompt)]
        request = intake.request(str(i), ids, params, prompt=None, stream=False, index=i, arrival_time=0.0)
        left[request] = output
        scheduler.add(request.sequences[0])
    seen: dict[Sequence, int] = {}
    begin = time.thread_time()
    while left:
        chunks = scheduler.schedule()
        assert chunks, "nothing runs"
        figures.steps += 1
        figures.sequences += len(chunks)
        tokens = sum(chunk.num_tokens for chunk in chunks)
        figures.computed += tokens
        figures.clock += STEP_TOKENS + tokens
        ready = [chunk.sequence for chunk in chunks if chunk.complete]
        for chunk in chunks:
            start = chunk.sequence.num_computed
            chunk.sequence.num_computed = end = start + chunk.num_tokens
            before = seen.get(chunk.sequence, 0)
            figures.recomputed += max(0, min(end, before) - start)
            seen[chunk.sequence] = max(end, before)
        for sequence in ready:
            sequence.tokens.append(1)
            if sequence.num_output == left[sequence.request]:
                sequence.finish_reason = "stop"
                scheduler.finish(sequence)
                del left[sequence.request], seen[sequence]
    figures.cpu_s = time.thread_time() - begin
    scheduler.check_integrity()
    figures.preemptions = scheduler.preemption.count
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of the KV blocks that all would use at once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table = Table(title=f"{REQUESTS} requests, KV pool of {args.share:.0%} of their demand")
    columns = ("shape", "prefix cache", "preemptions", "recomputed", "batch", "speed", "CPU s")
    for column in columns:
        table.add_column(column, justify="left" if column == "shape" else "right")
    results = []
    for shape in SHAPES:
        full = run(shape, 1.05)
        for caching in (True, False):
            found = run(shape, args.share, enable_prefix_caching=caching)
            speed = full.clock / found.clock
            table.add_row(
                shape.name,
                "yes" if caching else "no",
                str(found.preemptions),
                f"{found.recomputed / found.computed:.1%}",
                f"{found.sequences / found.steps:.1f}",
                f"{speed:.2f}",
                f"{found.cpu_s:.2f}",
            )
            results.append({"shape": shape.name, "prefix_caching": caching, "speed": speed, **asdict(found)})
    Console(width=140).print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
