"""What `pybatch run --dry-run` predicts, against what the same rows then take.

    python bench/estimate.py [ROWS.jsonl] [--model MODEL] [--quantization int8] [--max-tokens 128] [--rounds 3]
        [--clock wall|cpu] [--json PATH]

Each round calibrates, estimates and runs the rows, so that a slow spell of the machine hits all three. --clock cpu
counts the seconds of CPU time of the process in place of wall time, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from pybatch import LLM, SamplingParams
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.estimate.estimate import estimate
from pybatch.jobs.rows import Source
from pybatch.jobs.sources import open_source
from pybatch.tune.calibration import measure

REVIEWS = Path(__file__).parent.parent / "examples" / "reviews.jsonl"


def run_once(llm: LLM, source: Source, params: SamplingParams) -> dict[str, float]:
    """Calibrates, estimates and runs."""
    dialect = PlainDialect()
    begin = time.perf_counter()
    times = measure(llm.engine, clock=time.perf_counter)
    calibration = time.perf_counter() - begin
    told = estimate(llm, source.rows(), dialect, params, times)
    llm.reset_prefix_cache()

    metrics = llm.engine.metrics
    before = metrics.step_tokens, metrics.output_tokens, metrics.cached_tokens
    begin = time.perf_counter()
    outputs = llm.generate([dialect.request(row).prompt for row in source.rows()], params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    return {
        "calibration_s": calibration,
        "fit_error": times.error,
        "trial_s": told.trial.seconds,
        "trial_predicted_s": told.trial.predicted_seconds,
        "predicted_s": told.seconds,
        "measured_s": seconds,
        "predicted_output_tokens": told.output_tokens,
        "output_tokens": metrics.output_tokens - before[1],
        "predicted_cached_tokens": told.cached_prompt_tokens,
        "cached_tokens": metrics.cached_tokens - before[2],
        "prompt_tokens": told.prompt_tokens,
        "counted_prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", default=str(REVIEWS))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quantization", default="int8")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    llm = LLM(args.model, quantization=args.quantization)
    source = open_source(args.rows)
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens, ignore_eos=args.ignore_eos)
    rounds: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        with mock.patch("time.perf_counter", time.process_time if args.clock == "cpu" else time.perf_counter):
            rounds.append(run_once(llm, source, params))

    table = Table(title=f"{Path(args.rows).name}, at most {args.max_tokens} tokens, {args.clock} time")
    for column in ("predicted", "measured", "off by", "output tokens", "measured", "trial", "predicted", "calibration"):
        table.add_column(column, justify="right")
    for each in rounds:
        table.add_row(
            f"{each['predicted_s']:.1f} s",
            f"{each['measured_s']:.1f} s",
            f"{each['predicted_s'] / each['measured_s'] - 1:+.1%}",
            f"{each['predicted_output_tokens']:,}",
            f"{each['output_tokens']:,}",
            f"{each['trial_s']:.1f} s",
            f"{each['trial_predicted_s']:.1f} s",
            f"{each['calibration_s']:.1f} s",
        )
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args), "rounds": rounds}, indent=1, default=str))


if __name__ == "__main__":
    main()
