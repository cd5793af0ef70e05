"""What sharing saves: prefix hits of prompts with a common beginning, and the KV blocks of n samples of one prompt.

    python bench/sharing.py [--model smollm2-135m] [--json PATH]

Hits are prompt tokens found in the cache as a share of the ideal, in which the first prompt computes the prefix and all
others find the whole of it. KV blocks are the most that were in use after a step; separate requests are run without the
prefix cache, which would have them share the prompt too. A restart is an engine with an empty pool whose first prompt
has a prefix that is on the disk, as the page cache of the system holds it.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pybatch import LLM, SamplingParams
from pybatch.engine import Engine, EngineConfig

PROMPTS, OWN = 64, 24  # prompts, and tokens of their own at most
PREFIXES = (512, 520, 527, 100, 31)  # tokens: on a block's edge, inside and at its end, and short ones
SAMPLES, PROMPT, OUTPUT = 8, 512, 64


def some_tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(10, vocab_size) for _ in range(count)]


def engine_of(llm: LLM, **settings: Any) -> Engine:
    return Engine(llm.engine.decoder, None, EngineConfig(num_kv_blocks=1024, max_model_len=1024, **settings))


def run(engine: Engine, prompts: list[list[int]], **params: Any) -> int:
    """Returns the prompt tokens found in the cache."""
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, SamplingParams(ignore_eos=True, detokenize=False, **params), index=i)
    while engine.has_unfinished():
        for output in engine.step():
            if output.error is not None:
                raise SystemExit(output.error)
    return engine.metrics.cached_tokens


def prefix_hits(llm: LLM, length: int, *, pinned: bool) -> dict[str, float]:
    rng, vocab = random.Random(length), llm.engine.decoder.config.vocab_size
    prefix = some_tokens(rng, length, vocab)
    prompts = [prefix + some_tokens(rng, rng.randint(1, OWN), vocab) for _ in range(PROMPTS)]
    engine = engine_of(llm)
    if pinned:
        engine.pin_prefix("pin", prefix)
        while engine.has_unfinished():
            engine.step()
    ideal = (PROMPTS - (not pinned)) * length
    found = run(engine, prompts, temperature=0, max_tokens=2)
    size = engine.config.block_size
    return {"ideal": ideal, "found": found, "hits": found / ideal, "whole_blocks": length // size * size / length}


def sample_blocks(llm: LLM) -> dict[str, float]:
    prompt = some_tokens(random.Random(1), PROMPT, llm.engine.decoder.config.vocab_size)
    together, separate = engine_of(llm), engine_of(llm, enable_prefix_caching=False)
    run(together, [prompt], n=SAMPLES, temperature=1.0, seed=0, max_tokens=OUTPUT)
    run(separate, [prompt] * SAMPLES, temperature=1.0, seed=0, max_tokens=OUTPUT)
    blocks = together.metrics.peak_kv_blocks, separate.metrics.peak_kv_blocks
    return {"samples": blocks[0], "separate": blocks[1], "share": blocks[0] / blocks[1]}


def restart(llm: LLM) -> dict[str, float]:
    """Processor time of a first prompt, of which an engine before wrote the first PROMPT tokens to the disk or not."""
    vocab = llm.engine.decoder.config.vocab_size
    prefix = some_tokens(random.Random(2), PROMPT, vocab)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("computed", "from disk", "from disk"):  # the second time is as good as the first
            engine = engine_of(llm, prefix_cache_dir=folder)
            run(engine, [some_tokens(random.Random(3), PROMPT, vocab)], temperature=0, max_tokens=2)  # buffers grow
            begin = time.process_time()
            run(engine, [[*prefix, 11, 12, 13]], temperature=0, max_tokens=1)
            figures[name] = min(time.process_time() - begin, figures.get(name, 60.0))
            figures["tokens"] = engine.metrics.disk_tokens
            engine.pin_prefix("pin", prefix)
            run(engine, [])
            assert engine.prefix_files is not None
            engine.prefix_files.wait()
        figures["bytes"] = sum(path.stat().st_size for path in Path(folder).rglob("*.kv"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    llm = LLM(args.model, quantization="int8", num_kv_blocks=64, max_model_len=1024)

    hits = {
        (length, pinned): prefix_hits(llm, length, pinned=pinned) for length in PREFIXES for pinned in (False, True)
    }
    table = Table(title=f"{PROMPTS} prompts with a common prefix: prefix tokens found, of the ideal")
    for name in ("prefix", "found", "pinned before", "with whole blocks alone"):
        table.add_column(name, justify="right")
    for length in PREFIXES:
        first = hits[length, False]
        shares = first["hits"], hits[length, True]["hits"], first["whole_blocks"]
        table.add_row(str(length), *(f"{share:.1%}" for share in shares))
    blocks = sample_blocks(llm)
    console = Console()
    console.print(table)
    console.print(
        f"{SAMPLES} samples of {PROMPT} + {OUTPUT} tokens: {blocks['samples']} KV blocks, as {SAMPLES} requests "
        f"{blocks['separate']}: {blocks['share']:.1%}"
    )
    again = restart(llm)
    console.print(
        f"After a restart, a prompt of {PROMPT + 3} tokens: {again['computed'] * 1e3:.0f} ms of processor time; with "
        f"{again['tokens']} tokens from the disk ({again['bytes'] / 1e6:.1f} MB) {again['from disk'] * 1e3:.0f} ms"
    )
    if args.json is not None:
        results = {
            "date": str(date.today()),
            "machine": platform.processor() or platform.machine(),
            "model": args.model,
            "prefix_hits": [{"prefix": n, "pinned": pinned, **each} for (n, pinned), each in hits.items()],
            "sample_blocks": blocks,
            "restart": again,
        }
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
