"""Two ranks with a core each beside one process with both: decode steps of the same requests, and the time of a step
that the first rank spends in exchanges, its waits for the other included.

    python bench/ranks.py MODEL [--quantization int8] [--sequences 1 8 32] [--rounds 2] [--json PATH]

The two take turns, as no machine stays the same for long. A decode step is the median of those in which all decode.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from pybatch import LLM, SamplingParams
from pybatch.machine.ranks import Ranks
from pybatch.machine.threads import set_threads

PROMPT, OUTPUT, SIZE = 8, 24, 2


class Exchanges:
    """The seconds that this process has spent in Ranks.gather."""

    def __init__(self) -> None:
        self.seconds = 0.0
        gather = Ranks.gather

        def timed(ranks: Ranks, part: Tensor) -> Tensor:
            begin = time.perf_counter()
            whole = gather(ranks, part)
            self.seconds += time.perf_counter() - begin
            return whole

        Ranks.gather = timed  # type: ignore[method-assign]


def steps(llm: LLM, sequences: int, exchanges: Exchanges) -> tuple[list[float], list[float]]:
    """Seconds of each step in which all decode, and of its exchanges."""
    engine, vocab = llm.engine, llm.engine.decoder.config.vocab_size
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    for i in range(sequences):
        engine.add_request(str(i), [(7 * i + 3 * j) % vocab for j in range(PROMPT)], params)
    found, of_exchanges = [], []
    while engine.has_unfinished():
        before, exchanges.seconds, begin = engine.metrics.step_tokens, 0.0, time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - begin
        if engine.metrics.step_tokens - before == sequences and engine.num_waiting == 0:
            found.append(seconds)
            of_exchanges.append(exchanges.seconds)
    engine.reset_prefix_cache()
    return found, of_exchanges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quantization")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    most = max(args.sequences)
    settings: dict[str, Any] = {
        "quantization": args.quantization, "num_kv_blocks": most * -(-(PROMPT + OUTPUT) // 16) + 64,
        "max_model_len": PROMPT + OUTPUT, "max_num_seqs": most, "skip_tokenizer_init": True, "device": "cpu",
    }  # fmt: skip
    exchanges = Exchanges()
    kinds = {"one process": SIZE, "two ranks": 1}  # and their threads
    llms = [
        LLM(args.model, threads=SIZE, **settings),
        LLM(args.model, tensor_parallel_size=SIZE, threads=1, **settings),
    ]
    found: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    for turn in range(args.rounds + 1):
        for sequences in args.sequences:
            for (kind, threads), llm in zip(kinds.items(), llms, strict=True):
                set_threads(threads)
                times, of_exchanges = steps(llm, sequences, exchanges)
                if turn:  # the first records graphs
                    kept = found.setdefault((sequences, kind), ([], []))
                    kept[0].extend(times)
                    kept[1].extend(of_exchanges)
    figures = [
        {
            "sequences": sequences,
            "kind": kind,
            "step_ms": median(times) * 1e3,
            "exchanges_ms": median(of_exchanges) * 1e3,
            "tokens_per_second": sequences / median(times),
        }
        for (sequences, kind), (times, of_exchanges) in found.items()
    ]
    name = Path(args.model).name
    table = Table(title=f"{name}, {args.quantization or 'as it is'}: {SIZE} ranks of a core, and one process of {SIZE}")
    for heading in ("sequences", "", "decode step, ms", "of it in exchanges", "tokens/s"):
        table.add_column(heading, justify="right")
    for each in figures:
        table.add_row(
            f"{each['sequences']}", f"{each['kind']}", f"{each['step_ms']:.2f}", f"{each['exchanges_ms']:.2f}",
            f"{each['tokens_per_second']:,.0f}",
        )  # fmt: skip
    Console().print(table)
    if args.json is not None:
        about = {"date": str(date.today()), "model": name, "quantization": args.quantization, "prompt": PROMPT}
        args.json.write_text(json.dumps({**about, "rounds": args.rounds, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
