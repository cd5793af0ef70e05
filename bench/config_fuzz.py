"""Random configurations of the engine's arguments on a tiny model: each runs, or is refused by one clear error.

    python bench/config_fuzz.py [--count 1000] [--seed 0] [--seconds S] [--json FILE]

Every argument of LLM that bears on memory, schedule or speed is drawn, with sensible values and silly ones, alone and
together. A configuration that is accepted answers a few requests, whose KV blocks must all be free again; one that is
refused must say so by a ValueError or TypeError of one line that has an argument's name. Anything else (MemoryError, an
error of torch or Python from within, an end that does not come) is a fault, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pybatch
from pybatch import LLM, SamplingParams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from tiny_model import save_tiny_model

STEPS = 2000  # in which a few short requests end
NAMES = {field.name for field in fields(pybatch.EngineArgs)} | {"gpu_memory_utilization"}

SILLY = 0.08  # how often an argument gets a value from behind the dots
VALUES: dict[str, tuple[Any, ...]] = {
    "max_model_len": (1, 2, 7, 16, 33, 100, 512, ..., 513, 10**6, 0, -1),
    "max_num_seqs": (1, 2, 3, 8, 64, 1000, ..., 0, -4, 2**31, 2.5),
    "max_num_batched_tokens": (1, 2, 5, 16, 64, 512, 5000, ..., 0, "many"),
    "max_queued": (0, 1, 5, 100, ..., -1, 1.5),
    "max_background_tokens": (1, 256, 10**6, ..., 0),
    "block_size": (8, 16, 32, 64, ..., 1, 12, 128, True),
    "memory_utilization": (1e-9, 1e-3, 0.1, 0.5, 1.0, ..., 0, 1.1, -1, float("nan"), "half"),
    "num_kv_blocks": (1, 2, 3, 8, 40, 200, 1000, ..., 0, 2**31, 10**9, 10**12),
    "kv_cache_dtype": ("auto", "int8", "int4", "float32", "float16", "bfloat16", None, ..., "fp8", "fp4"),
    "enable_prefix_caching": (True, False, ..., "no"),
    "prefix_cache_space": (0.0, 0.001, 10.0, ..., -1, float("inf")),
    "predict_lengths": (True, False, ..., 1),
    "swap_space": (0, 0.0001, 0.01, 1, ..., -1, 1e6, float("nan")),
    "seed": (None, 0, -5, 2**63, ..., 2**64, 1.5),
    "policy": (
        *("continuous", "static", "static(batch_size=2)", "dynamic", "micro", "dynamic(max_batch=3, max_wait=0.01)"),
        *("micro(micro_batch=2)", ..., "static(batch_size=500)", "static(batch_size=0)", "other", "static("),
    ),
    "speculative_config": (
        *({"method": "ngram"}, {"method": "suffix", "adaptive": False}, '{"method": "suffix"}'),
        *({"method": "ngram", "num_speculative_tokens": 64, "adaptive": False}, ..., "{", {"method": "draft_model"}),
        {"num_speculative_tokens": 0},
    ),
    "structured_outputs_timeout": (0.1, 10, ..., 0, -1, 1e9),
    "dtype": ("auto", "float32", "bfloat16", "float16", "half", ..., "int8", "float8"),
    "quantization": (None, "int8", "int8-weight-only", ..., "gguf", "awq", "int2", ""),
    "device": ("auto", "cpu", ..., "cuda", "cuda:7", "tpu"),
    "threads": (1, 2, None, ..., 0, -1, 10**6, 1.5),
    "user_weights": ({"a": 2.0}, '{"b": 3}', ..., {"a": -1}, "x"),
    "tune": (False, ..., "yes"),
    "gpu_memory_utilization": (0.2, ..., 2),
}


def draw(rng: random.Random) -> dict[str, Any]:
    """A few arguments."""
    given = {}
    for name in rng.sample(list(VALUES), rng.choice([1, 2, 3, 5, 8])):
        values = VALUES[name]
        dots = values.index(...)
        given[name] = rng.choice(values[dots + 1 :] if rng.random() < SILLY else values[:dots])
    return given


def try_one(model: Path, given: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """What came of it ("ran", "refused" or "fault"), and the error."""
    try:
        llm = LLM(model, **given)
    except (ValueError, TypeError) as error:
        text = str(error)
        named = text.split(":")[0].split(" ")[0].strip(",")
        clear = "\n" not in text.strip() and any(name in text for name in (*given, *NAMES))
        return ("refused" if clear else "fault"), f"{named}: {type(error).__name__}: {text}"
    except Exception as error:
        return "fault", f"{type(error).__name__}: {error}"
    try:
        answer_some(llm, rng)
    except Exception as error:
        return "fault", f"running: {type(error).__name__}: {error}"
    return "ran", ""


def answer_some(llm: LLM, rng: random.Random) -> None:
    """Raises whatever goes wrong. A request that the configuration has no room for is refused, with its numbers."""
    engine = llm.engine
    ended = 0
    for number in range(rng.randint(1, 5)):
        prompt = [rng.randrange(2, 250) for _ in range(rng.choice([1, 3, 17, 60]))]
        params = SamplingParams(max_tokens=rng.choice([1, 4, 20]), n=rng.choice([1, 1, 2]), ignore_eos=True)
        try:
            engine.add_request(str(number), prompt, params)
        except (ValueError, pybatch.QueueFullError):
            ended += 1
    for _ in range(STEPS):
        if not engine.has_unfinished():
            break
        for output in engine.step():
            if output.error is not None:
                raise RuntimeError(output.error)
    if engine.has_unfinished():
        raise RuntimeError(f"requests have not ended in {STEPS} steps")
    engine.check_integrity()


def outcomes(count: int, seed: int, seconds: float = float("inf")) -> Iterator[tuple[dict[str, Any], str, str]]:
    """seconds: after which no other begins."""
    rng, threads = random.Random(seed), torch.get_num_threads()
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder))
        for _ in range(count):
            if time.monotonic() > until:
                return
            given = draw(rng)
            kind, error = try_one(model, given, rng)
            yield given, kind, error
    torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    faults = []
    begin = time.monotonic()
    for given, kind, error in outcomes(args.count, args.seed, args.seconds):
        kinds[kind] += 1
        if kind == "refused":
            refused[error.split(":")[0]] += 1
        if kind == "fault":
            faults.append({"given": repr(given), "error": error[:500]})
            print(f"fault: {given}: {error[:300]}", file=sys.stderr, flush=True)
    table = Table(title=f"{kinds.total()} configurations in {time.monotonic() - begin:.0f} s")
    table.add_column("")
    table.add_column("number", justify="right")
    for name, number in [*kinds.most_common(), *((f"refused by {name}", n) for name, n in refused.most_common())]:
        table.add_row(name, str(number))
    Console().print(table)
    if args.json:
        fields = {"date": date.today().isoformat(), "seed": args.seed, **kinds, "refused_by": refused, "faults": faults}
        args.json.write_text(json.dumps(fields, indent=1) + "\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
