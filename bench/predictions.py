"""What pybatch plan predicts against runs that were made, for configurations that no calibration has seen.

    python bench/predictions.py [--models DIRECTORY] [--only NAME] [--rows SHARE] [--json FILE] [--doc docs/planning.md]

Step times are those of ThisMachine, measured with random weights; the simulator runs the rows through the engine's own
scheduler. Then the very same rows run. Throughput is of prompt and output tokens, completion time of all rows, peak KV
in blocks. Cases that the JSON has are not run again. --models: where the random models lie or are written to. --doc:
the page whose table is written anew, from the JSON where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pybatch import SamplingParams
from pybatch.engine import Engine, EngineConfig
from pybatch.machine.facts import facts
from pybatch.model.loader import load_model
from pybatch.model.unweighted import read_config, stored_dtype
from pybatch.tune.machines import ThisMachine
from pybatch.tune.precisions import arguments
from pybatch.tune.simulator import Simulator, Work

BEGIN, END = "<!-- bench/predictions.py -->", "<!-- end -->"
LIMIT = 0.15

RANDOM = {
    "wide-150m": [
        *("--hidden-size=1024", "--intermediate-size=4096", "--num-hidden-layers=6", "--num-attention-heads=8"),
        *("--num-key-value-heads=8", "--head-dim=128", "--vocab-size=16384"),
    ],
    "llama-1b": [],
}


@dataclass(frozen=True)
class Case:
    """inputs, outputs: tokens, evenly between two bounds."""

    model: str
    precision: str
    kv: str
    batch: int
    rows: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    policy: str = "continuous"

    def is_of(self, result: dict[str, object]) -> bool:
        """Whether it was run, for a result as it was read from JSON."""
        return json.loads(json.dumps(asdict(self))).items() <= result.items()


SMOL, WIDE, LARGE = "smollm2-135m", "wide-150m", "llama-1b"
CASES = [
    Case(SMOL, "float32", "auto", 3, 9, (30, 110), (15, 45)),
    Case(SMOL, "float32", "auto", 20, 40, (15, 150), (10, 30)),
    Case(SMOL, "float32", "auto", 56, 84, (8, 48), (8, 36)),
    Case(SMOL, "bfloat16", "auto", 5, 15, (60, 200), (10, 40)),
    Case(SMOL, "bfloat16", "auto", 28, 56, (10, 90), (10, 25), "micro"),
    Case(SMOL, "int8-weight-only", "auto", 10, 30, (25, 120), (10, 35)),
    Case(SMOL, "int8-weight-only", "auto", 40, 50, (20, 80), (8, 20), "static"),
    Case(SMOL, "int8", "auto", 7, 35, (40, 220), (15, 50)),
    Case(SMOL, "int8", "auto", 36, 108, (20, 180), (8, 32)),
    Case(SMOL, "int8", "auto", 48, 144, (10, 100), (12, 44), "micro"),
    Case(SMOL, "int8", "int4", 14, 42, (50, 300), (10, 50)),
    Case(SMOL, "int8", "int4", 60, 120, (30, 130), (10, 30)),
    Case(WIDE, "bfloat16", "auto", 9, 27, (15, 100), (10, 30)),
    Case(WIDE, "bfloat16", "auto", 30, 60, (20, 80), (8, 24)),
    Case(WIDE, "int8-weight-only", "int8", 3, 15, (30, 160), (15, 40)),
    Case(WIDE, "int8-weight-only", "int8", 22, 44, (12, 90), (8, 28)),
    Case(LARGE, "int8", "int8", 3, 6, (15, 70), (6, 16)),
    Case(LARGE, "int8", "int8", 14, 20, (12, 50), (5, 14)),
    Case(LARGE, "bfloat16", "auto", 2, 4, (10, 50), (5, 12)),
    Case(LARGE, "bfloat16", "auto", 8, 10, (10, 36), (4, 10)),
]


def path_of(name: str, folder: Path) -> str:
    """The random models are written where they are not there yet."""
    if name not in RANDOM:
        return name
    path = folder / name
    if not (path / "model.safetensors.index.json").exists():
        script = Path(__file__).with_name("random_model.py")
        subprocess.run([sys.executable, script, "llama-3.2-1b", path, *RANDOM[name]], check=True)
    return str(path)


def works(case: Case, vocab: int, share: float) -> list[Work]:
    rng = random.Random(f"{case}")
    return [
        Work([rng.randrange(vocab) for _ in range(rng.randint(*case.inputs))], [rng.randint(*case.outputs)])
        for _ in range(max(1, round(case.rows * share)))
    ]


def predictions(cases: list[Case], folder: Path, share: float) -> Iterator[dict[str, object]]:
    machines, loaded, known = {}, None, None
    for case in cases:
        path = path_of(case.model, folder)
        model = read_config(path)
        machine = machines.setdefault(stored_dtype(path), ThisMachine(stored_dtype(path)))
        rows = works(case, model.vocab_size, share)
        tokens = sum(len(work.prompt_token_ids) + work.output_tokens[0] for work in rows)
        config = EngineConfig(
            max_num_seqs=case.batch,
            kv_cache_dtype=case.kv,  # type: ignore[arg-type]
            policy=case.policy,
            num_kv_blocks=max(128, sum(-(-(len(w.prompt_token_ids) + w.output_tokens[0]) // 16) + 1 for w in rows)),
            max_model_len=2048,
        )
        steps = machine.steps(machine.decoder(model, case.precision), case.precision, config)
        if known != (case.model, case.precision):
            loaded = None  # frees it
            loaded = load_model(path, skip_tokenizer=True, max_model_len=2048, **arguments(case.precision)).decoder
            known = (case.model, case.precision)
        engine = Engine(loaded, None, config)
        simulator = Simulator(
            engine.config, steps.seconds, max_model_len=engine.max_model_len, num_kv_blocks=engine.num_kv_blocks
        )
        told = simulator.run(rows)
        run(
            Engine(loaded, None, config), rows[: min(len(rows), case.batch)], most=2
        )  # what is made once is made before
        begin = time.perf_counter()
        run(engine, rows)
        seconds = time.perf_counter() - begin
        yield {
            **asdict(case),
            "predicted_s": told.seconds,
            "measured_s": seconds,
            "predicted_rate": tokens / told.seconds,
            "measured_rate": tokens / seconds,
            "predicted_kv": told.peak_kv_blocks,
            "measured_kv": engine.metrics.peak_kv_blocks,
            "off": told.seconds / seconds - 1,
            "steps": engine.metrics.steps,
            "simulated_steps": told.steps,
        }


def run(engine: Engine, rows: list[Work], most: int = 1 << 30) -> None:
    """most: tokens of an answer."""
    pending = list(enumerate(rows))
    while pending or engine.has_unfinished():
        while pending and engine.num_unfinished() < engine.config.requests_ahead:
            number, work = pending.pop(0)
            outputs = min(work.output_tokens[0], most)
            params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=outputs, detokenize=False)
            engine.add_request(str(number), list(work.prompt_token_ids), params)
        engine.step()


COLUMNS = ("model", "precision", "KV", "batch", "rows", "tokens/s: predicted", "made", "s: predicted", "made", "off")
KV = ("peak KV blocks: predicted", "made")


def cells(each: dict[str, object]) -> list[str]:
    policy = "" if each["policy"] == "continuous" else f", {each['policy']}"
    return [
        *(str(each[name]) for name in ("model", "precision", "kv")),
        f"{each['batch']}{policy}",
        str(each["rows"]),
        *(f"{each[name]:,.0f}" for name in ("predicted_rate", "measured_rate")),
        *(f"{each[name]:.2f}" for name in ("predicted_s", "measured_s")),
        f"{each['off']:+.0%}",
        *(f"{each[name]:,}" for name in ("predicted_kv", "measured_kv")),
    ]


def write_table(path: Path, results: list[dict[str, object]]) -> None:
    lines = [" | ".join(("", *row, "")).strip() for row in [(*COLUMNS, *KV), ["---"] * 12, *map(cells, results)]]
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("/tmp/pybatch-models"))
    parser.add_argument("--only", help="cases of this model")
    parser.add_argument("--rows", type=float, default=1.0, help="this share of the rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--doc", type=Path)
    args = parser.parse_args()
    if args.json and args.doc and args.json.exists():
        write_table(args.doc, json.loads(args.json.read_text())["results"])
        return
    results = json.loads(args.json.read_text())["results"] if args.json and args.json.exists() else []
    cases = [case for case in CASES if args.only in (None, case.model) and not any(case.is_of(r) for r in results)]
    for each in predictions(cases, args.models, args.rows):
        results.append(each)
        print(" ".join(cells(each)), flush=True)
        if args.json:
            about = {
                "date": date.today().isoformat(),
                "cpu": facts()["cpu"],
                "threads": torch.get_num_threads(),
                "load_average": os.getloadavg()[0],
            }
            args.json.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    table = Table(title="Predictions")
    for name in (*COLUMNS, *KV):
        table.add_column(name, justify="right")
    for each in results:
        table.add_row(*cells(each))
    Console(width=160).print(table)
    worst = max(abs(float(str(each["off"]))) for each in results)
    print(f"furthest off: {worst:.0%}; {sum(abs(float(str(e['off']))) <= LIMIT for e in results)} within {LIMIT:.0%}")


if __name__ == "__main__":
    main()
