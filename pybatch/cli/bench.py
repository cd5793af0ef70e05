"""pybatch bench: what a model does on this machine, measured."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pybatch.cli.command import load, stderr, stdout, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, option, takes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pybatch.tune.sweep import SweepPoint

bench = typer.Typer(no_args_is_help=True, help="Measure a model on this machine.")
measured = partial(option, "What is measured")


@bench.callback()
def commands() -> None:
    """Measure a model on this machine."""


@bench.command()
@takes(engine=EngineFlags)
def step(
    name: Annotated[str | None, typer.Argument(help="The model, as --model.", metavar="MODEL")] = None,
    sequences: Annotated[
        str, measured("Sequences in a step, with commas. Default: 1,8,32,64.", metavar="N,N,...")
    ] = "1,8,32,64",
    context: Annotated[int, measured("Tokens that each attends to. Default: 32.", min=1)] = 32,
    steps: Annotated[int, measured("Steps of each size, of which the median is shown. Default: 32.", min=1)] = 32,
    json_file: Annotated[str | None, measured("Write the figures as JSON.", "--json", metavar="FILE")] = None,
    *,
    engine: EngineFlags,
) -> None:
    """Show where a decode step's time goes: each kernel, and the Python around them."""
    with usage_errors():
        from pybatch.engine.step_parts import decode_step
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.jobs.report.report import write_json

        sizes = numbers("sequences", sequences)
        if json_file is not None:
            expect_place(json_file)
    if name is not None:
        engine.model = name
    llm, _ = load(engine, SamplingFlags())
    with usage_errors():
        with stderr.status("Measuring steps"):
            parts = {size: decode_step(llm.engine, size, context, steps) for size in sizes}
        if json_file is not None:
            write_json(json_file, {"model": engine.model, "context": context, "seconds": parts, **llm.session.settings})
    stdout().print(step_table(engine.model, parts))


def numbers(argument: str, text: str) -> list[int]:
    """Raises ValueError."""
    try:
        found = [int(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(f"{argument}: expected positive numbers with commas, such as 1,8,64, got {text!r}")
    return found


def step_table(model: str, parts: Mapping[int, Mapping[str, float]]) -> Table:
    table = Table(title=f"ms of a decode step of {model}, by sequences", title_justify="left")
    table.add_column("part")
    for size in parts:
        table.add_column(str(size), justify="right")
    for part in dict.fromkeys(part for of_size in parts.values() for part in of_size if part != "step"):
        seconds = [(each.get(part, 0.0), each["step"]) for each in parts.values()]
        cells = (f"{own * 1e3:.2f} ({own / whole:4.0%})" for own, whole in seconds)
        table.add_row(part, *cells)
    table.add_row("step", *(f"{each['step'] * 1e3:.2f}" for each in parts.values()))
    return table


@bench.command()
@takes(engine=EngineFlags)
def sweep(
    name: Annotated[str | None, typer.Argument(help="The model, as --model.", metavar="MODEL")] = None,
    batch_sizes: Annotated[
        str, measured("Batch sizes, with commas. Default: 1,2,4,8,16,32,64.", metavar="N,N,...")
    ] = "1,2,4,8,16,32,64",
    precision: Annotated[
        list[str] | None, measured("fp32 or a quantization; may be repeated. Default: what --quantization says.")
    ] = None,
    kv_type: Annotated[
        list[str] | None, measured("A --kv-cache-dtype; may be repeated. Default: what that flag says.")
    ] = None,
    input_tokens: Annotated[int, measured("Of each prompt. Default: 128.", min=1)] = 128,
    output_tokens: Annotated[int, measured("Of each answer. Default: 32.", min=2)] = 32,
    json_file: Annotated[str | None, measured("Write the figures as JSON.", "--json", metavar="FILE")] = None,
    *,
    engine: EngineFlags,
) -> None:
    """Measure batch sizes, precisions and KV types, and find where more sequences bring nothing, and why."""
    from dataclasses import asdict, replace

    with usage_errors():
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.jobs.report.report import write_json
        from pybatch.tune.sweep import Ceilings
        from pybatch.tune.sweep import sweep as swept

        sizes = numbers("batch_sizes", batch_sizes)
        if json_file is not None:
            expect_place(json_file)
    if name is not None:
        engine.model = name
    out = stdout()
    told: list[dict[str, object]] = []
    ceilings = None
    given = engine.given()
    precisions: Sequence[str | None] = precision or (given.get("quantization"),)
    kv_types: Sequence[str | None] = kv_type or (given.get("kv_cache_dtype"),)
    for quantization in precisions:
        for kv in kv_types:
            of_model = None if quantization == "fp32" else quantization
            changed = {"quantization": of_model, "kv_cache_dtype": kv, "max_num_seqs": max(sizes)}
            flags = replace(engine, **changed)  # type: ignore[arg-type]
            llm, _ = load(flags, SamplingFlags())
            with usage_errors(), stderr.status("Measuring batches"):
                ceilings = ceilings or Ceilings.measured(llm.engine.decoder.device)
                points = swept(llm.engine, of_model, sizes, input_tokens, output_tokens, ceilings)
            title = f"{engine.model}, {quantization or 'as it is'}, KV {kv or 'auto'}"
            out.print(sweep_table(title, points))
            told.append({"precision": quantization, "kv": kv, "points": [asdict(point) for point in points]})
    if json_file is not None:
        fields = {"model": engine.model, "input_tokens": input_tokens, "output_tokens": output_tokens}
        with usage_errors():
            write_json(
                json_file, {**fields, "ceilings": None if ceilings is None else asdict(ceilings), "sweeps": told}
            )


def sweep_table(title: str, points: Sequence[SweepPoint]) -> Table:
    from pybatch.jobs.report.summary import duration
    from pybatch.tune.sweep import knee

    at, why = knee(points)
    table = Table(title=title, title_justify="left", caption=f"Knee at {at}: {why}", caption_justify="left")
    for column in ("batch", "output tok/s", "tok/s", "TTFT p50/p99", "TPOT p50/p99", "KV used", "bytes", "arithmetic"):
        table.add_column(column, justify="right")
    for each in points:
        table.add_row(
            str(each.max_num_seqs),
            f"{each.output_rate:,.1f}",
            f"{each.total_rate:,.1f}",
            f"{duration(each.ttft_p50)} / {duration(each.ttft_p99)}",
            f"{duration(each.tpot_p50)} / {duration(each.tpot_p99)}",
            f"{each.peak_kv_bytes / 2**20:,.1f} MiB",
            f"{each.of_bandwidth:.0%}",
            f"{each.of_arithmetic:.0%}",
        )
    return table
