"""The table of precisions: memory, latency and throughput by batch size, and perplexity, each measured.

    python bench/precisions.py --sweep sweep.json --sweep sweep-kv.json [--json FILE] [--doc docs/planning.md]

Memory and speed are those of `pybatch bench sweep --json`; perplexity is measured here, for every precision and KV
type in the sweeps: of stretches of Python's own documentation, as prompts. With --json perplexities that
are there already are not measured again. --doc: the page whose table is written anew.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from rich.console import Console
from rich.table import Table

import pybatch
from pybatch import SamplingParams
from pybatch.tune.precisions import arguments

STRETCHES, TOKENS = 6, 512
BATCHES = (1, 8, 32, 64, 256)
BEGIN, END = "<!-- bench/precisions.py -->", "<!-- end of bench/precisions.py -->"
COLUMNS = (
    *("precision", "KV", "weights", "KV a token", "perplexity"),
    *(f"tokens/s, ms a token: {batch}" if batch == BATCHES[0] else str(batch) for batch in BATCHES),
)


def perplexity(model: str, precision: str, kv: str) -> float:
    settings: dict[str, Any] = {"kv_cache_dtype": kv, "num_kv_blocks": 80, **arguments(precision)}
    llm = pybatch.LLM(model, max_model_len=TOKENS + 1, **settings)
    text = llm.get_tokenizer().encode("\n\n".join(topics[name] for name in sorted(topics)))
    step = (len(text) - TOKENS) // STRETCHES
    prompts = [text[i * step : i * step + TOKENS] for i in range(STRETCHES)]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    logprobs = [
        entry[token].logprob
        for output in llm.generate(prompts, params, use_tqdm=False)
        for entry, token in zip(output.prompt_logprobs or (), output.prompt_token_ids, strict=True)
        if entry is not None
    ]
    return math.exp(-sum(logprobs) / len(logprobs))


def cells(row: dict[str, Any]) -> list[str]:
    speeds = {point["max_num_seqs"]: point for point in row["points"]}
    one, largest = row["points"][0], row["points"][-1]
    blocks = -(-row["tokens"] // 16)  # of the default size, in a batch of one
    return [
        row["precision"],
        row["kv"],
        f"{largest['weight_bytes'] / 2**20:,.0f} MiB",
        f"{one['peak_kv_bytes'] / one['max_num_seqs'] / blocks / 16 / 1024:.1f} KiB",
        f"{row['perplexity']:.3f}",
        *(
            f"{speeds[batch]['output_rate']:,.0f}, {1e3 * speeds[batch]['tpot_p50']:,.1f}" if batch in speeds else "-"
            for batch in BATCHES
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, action="append", required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--doc", type=Path)
    args = parser.parse_args()
    known = {}
    if args.json and args.json.exists():
        known = {(row["precision"], row["kv"]): row["perplexity"] for row in json.loads(args.json.read_text())["rows"]}
    rows = []
    for file in args.sweep:
        swept = json.loads(file.read_text())
        tokens = int(swept["input_tokens"] + swept["output_tokens"])
        for each in swept["sweeps"]:
            name = (each["precision"], each["kv"])
            found = known.get(name)
            if found is None:
                found = perplexity(swept["model"], *name)
                print(f"{name}: {found:.3f}", flush=True)
            rows.append({**each, "perplexity": found, "tokens": tokens})
            if args.json:
                args.json.write_text(
                    json.dumps({"stretches": STRETCHES, "tokens": TOKENS, "rows": rows}, indent=1) + "\n"
                )
    table = Table(title="Precisions")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=160).print(table)
    if args.doc:
        lines = [" | ".join(("", *row, "")).strip() for row in [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]]
        before, _, rest = args.doc.read_text().partition(BEGIN)
        args.doc.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
