"""The Python of a step, without the kernels, and what makes it grow.

    python bench/steps.py [--only REGEX] [--json PATH]

The model computes nothing: its logits are ready. Times of a step are CPU time of the thread, the median and the least
of many. `thrash` cases count tokens, which no other program on the machine changes. `gap` is the longest time between
two outputs of a running stream while other prompts arrive, with a tiny model that does run; next to it is the longest
garbage collection of the process, in which no Python runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pybatch import AsyncLLM
from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution import graphs
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.model.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from pybatch.model.rope import RopeConfig

sys.path.append(str(Path(__file__).parent.parent / "tests"))
VOCAB, CONTEXT, BLOCK = 64, 131_072, 16
GREEDY = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, "max_tokens": None}


class ReadyModel:
    """Takes a decoder's place in the engine: logits without any work."""

    def __init__(self) -> None:
        rope = RopeConfig(rotary_dim=8)
        mixer = AttentionConfig(num_heads=1, num_kv_heads=1, head_dim=8, rope=rope)
        layer = LayerConfig(mixer=mixer, mlp=MLPConfig(width=8))
        self.config = ModelConfig(
            name="ready",
            family="llama",
            architecture="LlamaForCausalLM",
            vocab_size=VOCAB,
            hidden_size=8,
            layers=(layer,),
            norm=NormConfig(eps=1e-5),
            max_position=CONTEXT,
        )
        self.context_length = CONTEXT
        self.device = torch.device("cpu")
        self.layers = ()
        self.rotary = {rope: torch.ones(CONTEXT, 8)}
        self.cache_dtype = torch.float32
        self._logits = torch.randn(8192, VOCAB, generator=torch.Generator().manual_seed(0))

    def make_buffers(self, rows: int = 0) -> None:
        pass

    def caches(self, attention: Any, states: Any) -> list[Any]:
        return []

    def forward(self, batch: Any, caches: Any) -> Tensor:
        return self._logits[: len(batch.logits_rows)]


class EmptyGraph:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass

    def replay(self) -> None:
        pass


class Watch:
    """Adds up the thread's CPU seconds in functions it has wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        function: Callable[..., object] = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - start

        setattr(owner, attribute, timed)


WATCH = Watch()


def engine_of(**config: Any) -> Engine:
    settings = {"block_size": BLOCK, "num_kv_blocks": 20_000, **config}
    return Engine(ReadyModel(), None, EngineConfig(**settings))  # type: ignore[arg-type]


def timed_steps(engine: Engine, count: int) -> dict[str, Any]:
    """Milliseconds of `count` steps: schedule, build the inputs, and the rest (sample, update, outputs)."""
    steps: list[dict[str, float]] = []
    for _ in range(count):
        WATCH.seconds.clear()
        start = time.thread_time()
        engine.step()
        total = time.thread_time() - start
        parts = {"schedule": 0.0, "inputs": 0.0, **WATCH.seconds}
        steps.append({**parts, "sample": total - sum(parts.values()), "step": total})
    return {
        name: {
            "median_ms": 1e3 * statistics.median(step[name] for step in steps),
            "least_ms": 1e3 * min(step[name] for step in steps),
        }
        for name in steps[0]
    }


# ---- the cases ----


def running(sequences: int, **sampling: Any) -> dict[str, Any]:
    """Decode steps of so many sequences."""
    engine = engine_of(max_num_seqs=sequences, max_num_batched_tokens=4096)
    for i in range(sequences):
        engine.add_request(str(i), [1 + j % 50 for j in range(i % 40, 100)], SamplingParams(**{**GREEDY, **sampling}))
    for _ in range(100):
        engine.step()
    return timed_steps(engine, 200)


def renewed(sequences: int) -> dict[str, Any]:
    """Steps of so many sequences of which some end, and others begin, in every step."""
    engine = engine_of(max_num_seqs=sequences, max_num_batched_tokens=4096)
    for i in range(10 * sequences):
        params = SamplingParams(**{**GREEDY, "max_tokens": 100 if i >= sequences else 1 + i % 100})
        engine.add_request(str(i), [1 + (i + j) % 50 for j in range(32)], params)
    for _ in range(110):
        engine.step()
    return timed_steps(engine, 200)


def blocked_head() -> dict[str, Any]:
    """A step of one running sequence, while a prompt of 128k tokens, most of them cached, has no room."""
    engine = engine_of(num_kv_blocks=CONTEXT // BLOCK, max_num_batched_tokens=8192, max_num_seqs=64)
    prompt = [1 + i * i % 50 for i in range(CONTEXT - 1000)]
    engine.add_request("cached", prompt, SamplingParams(**{**GREEDY, "max_tokens": 1}))
    while engine.has_unfinished():
        engine.step()
    engine.add_request("running", [7] * 2000, SamplingParams(**GREEDY))
    engine.step()
    engine.add_request("long", [*prompt, *[3] * 900], SamplingParams(**GREEDY))
    engine.step()
    return timed_steps(engine, 100)


def queued(count: int, running: int = 64) -> dict[str, Any]:
    """A step of so many running sequences in front of a queue, and the abort of all that wait."""
    engine = engine_of(max_num_seqs=running, max_num_batched_tokens=4096)
    for i in range(count + running):
        engine.add_request(str(i), [1, 2, 3], SamplingParams(**GREEDY))
    for _ in range(5):
        engine.step()
    steps = timed_steps(engine, 100)
    start = time.thread_time()
    for i in range(count + running - 1, running - 1, -1):
        engine.abort(str(i))
    return {**steps, "abort_all": {"ms": 1e3 * (time.thread_time() - start)}}


def thrash(prompt: int, output: int, **config: Any) -> dict[str, Any]:
    """128 requests over a tenth of the KV blocks that they would use at once: tokens computed twice."""
    requests = 128
    demand = requests * -(-(prompt + output) // BLOCK)
    engine = engine_of(num_kv_blocks=demand // 10, max_model_len=prompt + output, max_num_seqs=requests, **config)
    for i in range(requests):
        begin = [1 + (i * 7 + j * j) % 50 for j in range(max(1, prompt - i % 16))]
        engine.add_request(str(i), begin, SamplingParams(**{**GREEDY, "max_tokens": output - i % 7}))
    return computed(engine)


def thrash_at_random(shapes: int) -> dict[str, Any]:
    """The same over 5 to 50% of the blocks, for prompts and outputs of very different lengths, some of which begin
    alike: the sums over all shapes."""
    rng = random.Random(7)
    sums: Counter[str] = Counter()
    for _ in range(shapes):
        prompt, output = int(2 ** rng.uniform(3, 10.5)), int(2 ** rng.uniform(2, 9))
        spread, begin = rng.choice([0, 0.1, 0.5, 0.9]), rng.choice([0, 0.3, 0.9])
        known = [[rng.randrange(1, 50) for _ in range(2 * prompt)] for _ in range(rng.choice([1, 4]))]
        prompts, outputs = [], []
        for _ in range(64):
            length, new = (max(1, int(mean * rng.uniform(1 - spread, 1 + spread))) for mean in (prompt, output))
            shared = rng.choice(known)[: int(begin * length)]
            prompts.append(shared + [rng.randrange(1, 50) for _ in range(length - len(shared))])
            outputs.append(new)
        lengths = [len(ids) + new for ids, new in zip(prompts, outputs, strict=True)]
        blocks = [-(-length // BLOCK) for length in lengths]
        engine = engine_of(
            num_kv_blocks=max(int(sum(blocks) * 2 ** rng.uniform(-4.3, -1)), max(blocks) + 1),
            max_model_len=max(lengths),
            max_num_seqs=rng.choice([16, 64]),
            max_num_batched_tokens=rng.choice([128, 512, 2048]),
            enable_prefix_caching=rng.random() < 0.6,
        )
        for i, (ids, new) in enumerate(zip(prompts, outputs, strict=True)):
            engine.add_request(str(i), ids, SamplingParams(**{**GREEDY, "max_tokens": new}))
        sums.update(computed(engine))
    return {name: sums[name] for name in ("steps", "preemptions", "computed_tokens", "cpu_s")}


def computed(engine: Engine) -> dict[str, Any]:
    """Runs an engine's requests to their end, and counts."""
    needed, start = 0, time.thread_time()
    while engine.has_unfinished():
        needed += sum(len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1 for output in engine.step())
    engine.check_integrity()
    metrics = engine.metrics
    return {
        "steps": metrics.steps,
        "preemptions": metrics.preemptions,
        "computed_tokens": metrics.step_tokens,
        "computed_per_needed": metrics.step_tokens / needed,
        "batch": metrics.step_sequences / metrics.steps,
        "cpu_s": time.thread_time() - start,
    }


def long_and_short() -> dict[str, Any]:
    """Steps until short prompts have ended that came after one of three quarters of the pool, behind a running one of
    a half; and until that one has begun."""
    engine = engine_of(num_kv_blocks=1024, max_model_len=16_384, max_num_seqs=64)
    engine.add_request("running", [1 + i % 50 for i in range(8192)], SamplingParams(**{**GREEDY, "max_tokens": 400}))
    for _ in range(20):
        engine.step()
    engine.add_request("long", [1 + i % 49 for i in range(12_288)], SamplingParams(**{**GREEDY, "max_tokens": 2}))
    for i in range(16):
        engine.add_request(str(i), [i] * 40, SamplingParams(**{**GREEDY, "max_tokens": 20}))
    ended: dict[str, int] = {}
    steps = 0
    while engine.has_unfinished():
        steps += 1
        ended.update((output.request_id, steps) for output in engine.step())
    return {"short_ended": max(ended[str(i)] for i in range(16)), "long_ended": ended["long"], "steps": steps}


def gap(arriving: int) -> dict[str, Any]:
    """The longest wait of a running stream."""
    from tiny_model import save_tiny_model

    async def longest(model: Path) -> float:
        async with AsyncLLM(model, num_kv_blocks=4096, threads=1) as llm:
            gaps: list[float] = []

            async def stream() -> None:
                last = 0.0
                async for _ in llm.generate([5, 6, 7], SamplingParams(temperature=0, ignore_eos=True, max_tokens=None)):
                    now = time.perf_counter()
                    gaps.append(now - last if last else 0.0)
                    last = now
                    if arrived.done():
                        return

            async def ask(i: int) -> None:
                text = f"Question {i}: " + "what is the cat that sat on the mat thinking of? " * 4
                async for _ in llm.generate(text, SamplingParams(temperature=0, max_tokens=1)):
                    pass

            arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            streaming = asyncio.create_task(stream())
            await asyncio.sleep(0.1)
            gaps.clear()
            asking = []
            for i in range(arriving):
                asking.append(asyncio.create_task(ask(i)))
                await asyncio.sleep(0)  # the loop's other tasks, the stream among them, have their turn
            await asyncio.wait(asking)
            arrived.set_result(None)
            await streaming
            return max(gaps)

    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder))
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 65_536}))
        collections, begun = [0.0], [0.0]

        def watch(phase: str, info: dict[str, int]) -> None:
            if phase == "start":
                begun[0] = time.perf_counter()
            else:
                collections.append(time.perf_counter() - begun[0])

        gc.callbacks.append(watch)
        try:
            gap = asyncio.run(longest(model))
        finally:
            gc.callbacks.remove(watch)
        return {"longest_ms": 1e3 * gap, "longest_collection_ms": 1e3 * max(collections)}


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"running {n}": lambda n=n: running(n) for n in (64, 256, 1000)},
    "running 1000, drawn": lambda: running(1000, temperature=0.8, top_p=0.9, seed=1),
    "running 1000, penalties": lambda: running(1000, frequency_penalty=0.5),
    "running 1000, log-probabilities": lambda: running(1000, logprobs=1),
    "renewed 1000": lambda: renewed(1000),
    "blocked head 128k": blocked_head,
    "queue 20000": lambda: queued(20_000),
    "queue 100000": lambda: queued(100_000),
    "queue 100000, running 1000": lambda: queued(100_000, 1000),
    "thrash, one chunk": lambda: thrash(100, 200),
    "thrash, one chunk, no prefix cache": lambda: thrash(100, 200, enable_prefix_caching=False),
    "thrash, long prompts": lambda: thrash(2000, 500),
    "thrash, long prompts, no prefix cache": lambda: thrash(2000, 500, enable_prefix_caching=False),
    "thrash, 100 random shapes": lambda: thrash_at_random(100),
    "long and short": long_and_short,
    "gap 2000": lambda: gap(2_000),
    "gap 10000": lambda: gap(10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name matches this regular expression")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    for name, case in CASES.items():
        if not re.search(args.only, name):
            continue
        if name.startswith("gap"):  # the model runs
            results[name] = case()
            continue
        graph, graphs.CpuGraph = graphs.CpuGraph, EmptyGraph  # type: ignore[misc,assignment]
        try:
            results[name] = case()
        finally:
            graphs.CpuGraph = graph  # type: ignore[misc]

    table = Table(title="a step's Python, ms: median (least)")
    table.add_column("case")
    parts = ("schedule", "inputs", "sample", "step")
    for part in (*parts, "also"):
        table.add_column(part, justify="right")
    for name, result in results.items():
        cells = [f"{r['median_ms']:.3f} ({r['least_ms']:.3f})" if (r := result.get(part)) else "" for part in parts]
        rest = {key: value for key, value in result.items() if key not in parts}
        also = ", ".join(f"{key} {value if isinstance(value, int) else _number(value)}" for key, value in rest.items())
        table.add_row(name, *cells, also)
    Console(width=180).print(table)
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1))


def _number(value: float | dict[str, float]) -> str:
    return f"{value['ms']:.0f} ms" if isinstance(value, dict) else f"{value:.3g}"


if __name__ == "__main__":
    WATCH.wrap(Scheduler, "schedule", "schedule")
    WATCH.wrap(ModelRunner, "run", "inputs")
    main()
