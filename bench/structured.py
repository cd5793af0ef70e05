"""What structured outputs cost: a step by how many of its sequences are constrained, and compiling.

    python bench/structured.py [--model NAME] [--rounds N] [--json PATH]

A step's figures are of the same 64 sequences, of which 0, 1, 32 and 64 follow a JSON schema, measured in turns: the CPU
time of the process, least and median, and the least time by the clock. Compiling is by the clock, the least of several:
in the process that tries a constraint first, and in the engine. It was started before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pybatch import LLM, SamplingParams
from pybatch.engine import Engine

SEQUENCES, STEPS = 64, 6
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 30},
    },
    "required": ["name", "age", "tags"],
}
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "choice": {"choice": ["positive", "negative", "neutral"]},
    "regex": {"regex": r"[a-z]{3,20}@[a-z]+\.com"},
    "json": {"json": SCHEMA, "disable_any_whitespace": True},
    "enum of 1,000": {"json": {"enum": [f"value {i}" for i in range(1000)]}},
    "1,000 properties": {"json": {"properties": {f"p{i}": {"type": "integer"} for i in range(1000)}}},
}


def params(seed: int, constraint: dict[str, Any] | None) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=400, ignore_eos=True, structured_outputs=constraint)  # type: ignore[arg-type]


def compile_seconds(engine: Engine, constraint: dict[str, Any]) -> float:
    """From a request's arrival to its place in the queue."""
    begin = time.perf_counter()
    engine.add_request("first", [1, 2], params(0, constraint))
    while engine.num_waiting:
        engine.step()
    engine.abort("first")
    return time.perf_counter() - begin


def steps(engine: Engine, constrained: int) -> list[tuple[float, float]]:
    """CPU and clock seconds of some steps in which all sequences decode."""
    for i in range(SEQUENCES):
        engine.add_request(str(i), [1 + i, 5, 9, 11], params(i, CONSTRAINTS["json"] if i < constrained else None))
    for _ in range(STEPS):
        engine.step()
    times = []
    for _ in range(STEPS):
        begin = time.process_time(), time.perf_counter()
        engine.step()
        times.append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
    for i in range(SEQUENCES):
        engine.abort(str(i))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    llm = LLM(arguments.model, quantization="int8", max_model_len=512, num_kv_blocks=2200, predict_lengths=False)
    engine = llm.engine
    compile_seconds(engine, {"regex": "to start with"})
    compiled = {name: compile_seconds(engine, constraint) for name, constraint in CONSTRAINTS.items()}
    for number in range(1, arguments.rounds):
        for name, constraint in CONSTRAINTS.items():
            # White space that was not there makes it another one, which is compiled anew.
            again = {**constraint, "whitespace_pattern": f"[ ]{{0,{number}}}"}
            compiled[name] = min(compiled[name], compile_seconds(engine, again))
    counts = (0, 1, SEQUENCES // 2, SEQUENCES)
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(arguments.rounds):
        for count in counts:
            times[count] += steps(engine, count)
    table = Table("constrained", "CPU ms, least", "median", "clock ms, least", title=f"A step of {SEQUENCES}")
    rows = {}
    for count, each in times.items():
        cpu, clock = zip(*each, strict=True)
        rows[count] = [1000 * min(cpu), 1000 * statistics.median(cpu), 1000 * min(clock)]
        table.add_row(str(count), *(f"{value:.1f}" for value in rows[count]))
    compiling = Table("constraint", "ms", title="Compiling")
    for name, seconds in compiled.items():
        compiling.add_row(name, f"{1000 * seconds:.1f}")
    Console().print(table, compiling)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"step_ms": rows, "compile_s": compiled}, indent=2))


if __name__ == "__main__":
    main()
