"""pybatch bench sweep: batch sizes, precisions, KV types and policies side by side."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pybatch.cli.bench.step import measured, numbers
from pybatch.cli.command import load, named, stderr, stdout, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, argument, option, takes
from pybatch.cli.plan import tokenizer_of
from pybatch.cli.signals import ending_at_once

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pybatch.tune.ceilings import Ceilings
    from pybatch.tune.sweep import Sweep
    from pybatch.tune.workload import Workload

workload = partial(option, "Workload")
told = partial(option, "Reports")


@takes(engine=EngineFlags)
def sweep(
    command: typer.Context,
    name: Annotated[str | None, argument("The model, as --model.", "MODEL")] = None,
    batch_sizes: Annotated[
        str, measured("Batch sizes, with commas. Default: 1,2,4,8,16,32,64,128,256.", metavar="N,N,...")
    ] = "1,2,4,8,16,32,64,128,256",
    precision: Annotated[
        list[str] | None,
        measured(
            "float32, bfloat16, float16, int8, int8-weight-only or gguf; may be repeated. Default: the model's own."
        ),
    ] = None,
    kv_type: Annotated[
        list[str] | None, measured("A --kv-cache-dtype; may be repeated. Default: what that flag says.")
    ] = None,
    batching: Annotated[
        list[str] | None, measured("A --policy; may be repeated. Default: what that flag says.")
    ] = None,
    gguf: Annotated[
        str | None, measured("The model as a GGUF file, for the precision gguf, where MODEL is none.", metavar="FILE")
    ] = None,
    rounds: Annotated[int, measured("Batches of rows that each size runs. Default: 2.", min=1, max=1000)] = 2,
    prompts: Annotated[
        str | None, workload("A JSONL file of rows: prompts, or input_tokens and output_tokens.", metavar="FILE")
    ] = None,
    input_tokens: Annotated[
        str | None, workload("Of a prompt: a number, or a distribution as in pybatch plan. Default: 128.")
    ] = None,
    output_tokens: Annotated[str | None, workload("Of an answer, likewise. Default: 32.")] = None,
    json_file: Annotated[str | None, told("Write the figures as JSON.", "--json", metavar="FILE")] = None,
    html: Annotated[str | None, told("Write a page with the plots.", metavar="FILE")] = None,
    png: Annotated[str | None, told("Write the plots as a PNG; needs pybatch[plots].", metavar="FILE")] = None,
    *,
    engine: EngineFlags,
) -> None:
    """Measure batch sizes, precisions, KV types and policies, and find where more sequences bring nothing, and why.

    Exit code: as pybatch run's.
    """
    with usage_errors():
        from pybatch.engine.scheduling.policies import as_policy
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.jobs.report.sweep_report import expect_plots
        from pybatch.tune.precisions import precision_named

        engine = named(engine, name, command)
        sizes = sorted(set(numbers("batch_sizes", batch_sizes)))
        places = [path for path in (json_file, html, png) if path is not None]
        if len(set(map(os.path.realpath, places))) < len(places):
            raise ValueError(f"--json, --html, --png: expected a file for each, got {', '.join(places)}")
        for path in places:
            expect_place(path)
        if png is not None:
            expect_plots()
        given = engine.given()
        own = given.get("quantization") or given.get("dtype") or "auto"
        precisions = [precision_named(each) for each in precision or ()] or [own]
        if gguf is not None and "gguf" not in precisions:
            raise ValueError("--gguf: is the model of --precision gguf, which is not among the precisions")
        policies = [str(as_policy(each)) for each in batching or [given.get("policy", "continuous")]]
        rows = find_workload(engine.model, prompts, input_tokens, output_tokens, (rounds + 1) * max(sizes))
        axes = list(itertools.product(precisions, kv_type or [given.get("kv_cache_dtype", "auto")]))
        engines = [of_precision(engine, each, kv, gguf, max(sizes)) for each, kv in axes]
        for (each, _), flags in zip(axes, engines, strict=True):
            expect_bits(each, flags.model)
    sweeps, ceilings, loaded = [], None, None
    with ending_at_once("Interrupted: no report was written."):
        for (each, kv), flags in zip(axes, engines, strict=True):
            loaded = None  # frees the one before
            loaded, _ = load(flags, SamplingFlags())
            with usage_errors(), stderr.status("Measuring batches"):
                from pybatch.tune.ceilings import Ceilings
                from pybatch.tune.sweep import Sweep, measure

                if rows.longest > (most := loaded.engine.max_model_len):
                    raise ValueError(f"input_tokens: a row has {rows.longest:,} tokens in and out, of at most {most:,}")
                ceilings = ceilings or Ceilings.measured(loaded.engine.decoder.device)
                of_model = getattr(loaded.engine.config, "quantization", None)
                for policy in policies:
                    points = [
                        measure(loaded.engine, of_model, size, rows, ceilings, policy, rounds)
                        for size in sizes
                        if (as_policy(policy).size or 1) <= size
                    ]
                    sweeps.append(Sweep(each, kv, policy, points))
            for made in sweeps[-len(policies) :]:
                stdout().print(sweep_table(engine.model, made))
    stdout().print(range_table(sweeps))
    assert ceilings is not None
    with usage_errors():
        write_sweeps(engine.model, sweeps, rows, ceilings, json_file, html, png)


def find_workload(
    model: str, prompts: str | None, input_tokens: str | None, output_tokens: str | None, rows: int
) -> Workload:
    from pybatch.tune.workload import Lengths, of_file, of_lengths

    outputs = Lengths.parse("output_tokens", output_tokens or "32", least=2)
    if prompts is None:
        return of_lengths(rows, Lengths.parse("input_tokens", input_tokens or "128"), outputs)
    if input_tokens is not None:
        raise ValueError("--prompts: its rows have lengths of their own; expected no --input-tokens")
    return of_file(prompts, outputs, rows, tokenizer_of(model))


def of_precision(engine: EngineFlags, precision: str, kv: str, gguf: str | None, max_num_seqs: int) -> EngineFlags:
    """Raises ValueError for an impossible argument."""
    from pybatch.api.engine_args import EngineArgs
    from pybatch.tune.precisions import arguments

    changed = {"quantization": None, "kv_cache_dtype": kv, "max_num_seqs": max_num_seqs, **arguments(precision)}
    if precision == "gguf" and gguf is not None:
        changed["model"] = gguf
    if max_num_seqs > engine.given().get("max_num_batched_tokens", 512):
        changed["max_num_batched_tokens"] = max_num_seqs
    made = replace(engine, **changed)  # type: ignore[arg-type]
    EngineArgs(**made.given())
    return made


def expect_bits(precision: str, model: str) -> None:
    """Raises ValueError for a model that is not there, or has no bits of its own where these are to run."""
    from pybatch.model.checkpoints.find import find_model

    if find_model(model).is_dir() and precision == "gguf":
        raise ValueError(f"precision: 'gguf' runs a GGUF file, and {model} is a directory; expected --gguf FILE")


def sweep_table(model: str, sweep: Sweep) -> Table:
    from pybatch.jobs.report.summary import duration

    at, why = sweep.knee
    table = Table(
        title=f"{model}, {sweep.name}", title_justify="left", caption=f"Knee at {at}: {why}", caption_justify="left"
    )
    columns = ("batch", "output tok/s", "tok/s", "TTFT p50/p99", "TPOT p50/p99", "weights", "KV used", "bytes")
    energy = any(point.joules for point in sweep.points)
    for column in (*columns, "arithmetic", *(["tok/J"] if energy else [])):
        table.add_column(column, justify="right")
    for each in sweep.points:
        table.add_row(
            str(each.max_num_seqs),
            f"{each.output_rate:,.1f}",
            f"{each.total_rate:,.1f}",
            f"{duration(each.ttft_p50)} / {duration(each.ttft_p99)}",
            f"{duration(each.tpot_p50)} / {duration(each.tpot_p99)}",
            f"{each.weight_bytes / 2**20:,.0f} MiB",
            f"{each.peak_kv_bytes / 2**20:,.1f} MiB",
            f"{each.of_bandwidth:.0%}",
            f"{each.of_arithmetic:.0%}",
            *([f"{each.tokens_per_joule or 0:,.1f}"] if energy else []),
        )
    return table


def range_table(sweeps: Sequence[Sweep]) -> Table:
    """The small, middle and large batches side by side: of the most throughput, and the time of a later token."""
    from pybatch.jobs.report.summary import duration
    from pybatch.tune.sweep import RANGES

    table = Table(title="Share of the most tok/s, and TPOT p50, by batch sizes", title_justify="left")
    for column in ("", *RANGES, "knee"):
        table.add_column(column, justify="left" if not column else "right")
    for each in sweeps:
        cells, ranges = [], each.ranges()
        for name in RANGES:
            of = ranges.get(name)
            cells.append(
                f"{of['least']:.0%} - {of['most']:.0%}, {duration(of['tpot_least'])} - {duration(of['tpot_most'])}"
                if of
                else "-"
            )
        table.add_row(each.name, *cells, str(each.knee[0]))
    return table


def write_sweeps(
    model: str,
    sweeps: Sequence[Sweep],
    rows: Workload,
    ceilings: Ceilings,
    json_file: str | None,
    html: str | None,
    png: str | None,
) -> None:
    from dataclasses import asdict

    from pybatch.jobs.report.report import write_json
    from pybatch.jobs.report.sweep_report import write_png, write_sweep_page
    from pybatch.machine.facts import facts

    of_rows = {"input_tokens": rows.input_tokens, "output_tokens": rows.output_tokens}
    title = f"{model}: batch sizes"
    if json_file is not None:
        made = [{**asdict(each), "knee": each.knee, "ranges": each.ranges()} for each in sweeps]
        about = {"model": model, **of_rows, "facts": facts(), "ceilings": asdict(ceilings)}
        write_json(json_file, {**about, "sweeps": made})
    if html is not None:
        shown = {name: f"{value:,.1f}" for name, value in of_rows.items()}
        gigas = {name: f"{value / 1e9:,.1f} G/s" for name, value in asdict(ceilings).items()}
        write_sweep_page(html, title, sweeps, {**shown, **gigas})
    if png is not None:
        write_png(png, title, sweeps)
