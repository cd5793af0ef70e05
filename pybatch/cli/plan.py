"""pybatch plan: what a model takes on a machine, before there is either."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pybatch.cli import exit_codes
from pybatch.cli.command import UsageError, stderr, stdout, usage_errors
from pybatch.cli.flags import CostFlags, argument, option, takes
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pybatch.tune.cost import Prices
    from pybatch.tune.fleet import FleetPlan, FleetRun
    from pybatch.tune.options import Option
    from pybatch.tune.plan import Plan
    from pybatch.tune.search import Machine
    from pybatch.tune.workload import Workload

where = partial(option, "Machine")
work = partial(option, "Workload")
wanted = partial(option, "Targets")
many = partial(option, "Many machines")
MOST_MACHINES = 100_000


@takes(cost=CostFlags)
def plan(
    model: Annotated[
        str,
        argument(
            "A directory with a config.json, that file, a GGUF file, or a hub name. No weights are needed.", "MODEL"
        ),
    ],
    chip: Annotated[
        str | None, where("A GPU by its data sheet, such as H100-SXM. Default: this machine, measured.", metavar="NAME")
    ] = None,
    precision: Annotated[
        list[str] | None, where("Plan this one only; may be repeated. Default: all that the machine has.")
    ] = None,
    kv_cache_dtype: Annotated[
        list[str] | None, where("Plan this KV type only; may be repeated. Default: those that the machine has.")
    ] = None,
    cpu_offload_gb: Annotated[
        float, where("GiB of a GPU's weights that stay in the host's memory, as of the engine. Default: 0.")
    ] = 0.0,
    max_num_seqs: Annotated[int, where("The largest batch to try. Default: 256.", min=1, max=4096)] = 256,
    prompts: Annotated[
        str | None, work("A JSONL file of rows: prompts, or input_tokens and output_tokens.", metavar="FILE")
    ] = None,
    input_tokens: Annotated[
        str | None, work("Of a prompt: a number, uniform:LOW:HIGH, normal:MEAN:SPREAD or lognormal:MEDIAN:SIGMA.")
    ] = None,
    output_tokens: Annotated[str | None, work("Of an answer, likewise.")] = None,
    shared_prefix: Annotated[int, work("Tokens with which all prompts begin.", min=0)] = 0,
    rows: Annotated[int | None, work("Of the job. Default: as many as the file has.", min=1)] = None,
    ttft: Annotated[float | None, wanted("Seconds to the first token, at most, for 99 in 100.")] = None,
    tpot: Annotated[float | None, wanted("Seconds for each later token, at most, for 99 in 100.")] = None,
    deadline: Annotated[float | None, wanted("Seconds for the whole job: says how many machines.")] = None,
    machines: Annotated[int | None, many("So many machines share the rows.", min=1, max=MOST_MACHINES)] = None,
    startup: Annotated[float, many("Seconds until a machine computes. Default: 60.", min=0)] = 60.0,
    stragglers: Annotated[
        str | None,
        many("A share of the machines takes so many times as long, such as 0.05:2.", metavar="SHARE:FACTOR"),
    ] = None,
    mtbf: Annotated[float | None, many("Hours between two failures of a machine. Default: none fails.")] = None,
    json_file: Annotated[str | None, work("Write the plan as JSON.", "--json", metavar="FILE")] = None,
    *,
    cost: CostFlags,
) -> None:
    """Plan a job: batch size, precision, time, machines and cost.

    The engine's own scheduler runs rows of the workload on a virtual clock, for every precision and KV type, in
    batches of each size; steps take what was measured here, or what a chip's data sheet and the shares that pybatch's
    kernels reach on an H100 come to. A model's config.json is enough.

    Exit code: 0; 1 where nothing fits the machine or meets the targets; 2, wrong usage.
    """
    with usage_errors():
        prices = cost.prices()
        from pybatch.jobs.disk.publishing import expect_place
        from pybatch.jobs.report.report import write_json
        from pybatch.model.unweighted import read_config
        from pybatch.tune.fleet import Fleet
        from pybatch.tune.options import Targets
        from pybatch.tune.plan import plan

        if json_file is not None:
            expect_place(json_file)
        targets = Targets(ttft, tpot, deadline)
        fleet = Fleet.parse(machines or 1, startup, stragglers, mtbf)
        if machines is None and (stragglers is not None or mtbf is not None):
            raise UsageError("--stragglers, --mtbf: are of many machines; expected --machines too")
        machine = find_machine(chip, model, cpu_offload_gb)
        config = read_config(model)
        workload = find_workload(model, prompts, input_tokens, output_tokens, shared_prefix, rows)
        with stderr.status("Planning") as status:
            made = plan(
                config,
                machine,
                workload,
                targets,
                precisions=precision or (),
                kv_cache_dtypes=kv_cache_dtype or (),
                max_num_seqs=max_num_seqs,
                tell=lambda what: status.update(f"Planning: {what}"),
            )
        planned = [] if machines is None else made.fleets(fleet)
        if json_file is not None:
            of_fleets = [{**asdict(each), "cost": cost_of(each.typical, prices)} for each in planned]
            write_json(json_file, {**made.to_json(prices), "fleets": of_fleets})
    show(made, prices, cpu_offload_gb)
    if planned:
        stdout().print(fleet_table(made, planned, prices))
    if made.chosen is None:
        raise typer.Exit(exit_codes.FAILED_ROWS)


def find_machine(chip: str | None, model: str, cpu_offload_gb: float) -> Machine:
    from pybatch.model.unweighted import stored_dtype
    from pybatch.tune.chips import find_chip
    from pybatch.tune.machines import OnChip, ThisMachine

    if chip is None:
        return ThisMachine(stored_dtype(model), cpu_offload_gb)
    return OnChip(find_chip(chip), cpu_offload_gb)


def find_workload(
    model: str,
    prompts: str | None,
    input_tokens: str | None,
    output_tokens: str | None,
    shared_prefix: int,
    rows: int | None,
) -> Workload:
    from pybatch.tune.workload import Lengths, of_file, of_lengths

    outputs = None if output_tokens is None else Lengths.parse("output_tokens", output_tokens)
    if prompts is not None:
        if input_tokens is not None or shared_prefix:
            raise UsageError(
                "--prompts: its rows have lengths of their own; expected no --input-tokens, --shared-prefix"
            )
        return of_file(prompts, outputs, rows, tokenizer_of(model))
    if input_tokens is None or outputs is None or rows is None:
        raise UsageError("expected --prompts, or --input-tokens, --output-tokens and --rows")
    return of_lengths(rows, Lengths.parse("input_tokens", input_tokens), outputs, shared_prefix)


def tokenizer_of(model: str) -> Callable[[str], list[int]] | None:
    """None where there is only a config."""
    from pybatch.model.checkpoints.find import find_model
    from pybatch.model.loader import load_tokenizer

    try:
        return load_tokenizer(find_model(model)).encode
    except ValueError:
        return None


def show(made: Plan, prices: Prices, offload: float) -> None:
    title = (
        f"{made.model} on {made.machine}: {made.rows:,} rows of {made.input_tokens:,.0f} tokens in, "
        f"{made.output_tokens:,.0f} out"
    )
    table = Table(title=printable(title), title_justify="left")
    for name in ("precision", "KV", "weights", "KV tokens", "batch", "tok/s", "TTFT p50/p99", "TPOT p50/p99", "time"):
        table.add_column(name, justify="left" if name in ("precision", "KV") else "right")
    table.add_column("machines", justify="right")
    if prices.per_hour is not None:
        table.add_column("job", justify="right")
        table.add_column("1M tokens", justify="right")
    for each in made.options:
        table.add_row(*cells(each, prices), style="bold" if each is made.chosen else None)
    out = stdout()
    out.print(table)
    for each in made.options:
        out.print(f"{each.precision}, KV {each.kv_cache_dtype}: {each.why}")
    chosen = made.chosen
    if chosen is None:
        out.print("Nothing fits this machine and meets the targets.")
        return
    assert chosen.best is not None
    assert chosen.usage is not None
    flags = f"--kv-cache-dtype {chosen.kv_cache_dtype} --max-num-seqs {chosen.best.max_num_seqs}"
    if offload:
        flags += f" --cpu-offload-gb {offload:g}"
    out.print(f"Cheapest: {chosen.precision}, {flags}")
    for name, value in prices.figures(chosen.usage).items():
        out.print(f"{name}: {value}")


def fleet_table(made: Plan, planned: Sequence[FleetPlan], prices: Prices) -> Table:
    from pybatch.api.progress import clock
    from pybatch.tune.cost import dollars

    last, chosen = planned[-1].fleet, made.chosen
    assert chosen is not None
    faults = [f"{last.startup:g} s to start"]
    if last.stragglers:
        faults.append(f"{last.stragglers:.0%} of them {last.slowdown:g} times as slow")
    if last.mtbf is not None:
        faults.append(f"a failure in {last.mtbf:g} hours of each")
    title = f"{made.rows:,} rows on many machines, {chosen.precision}: {', '.join(faults)}"
    table = Table(title=title, title_justify="left")
    for name in ("machines", "time", "9 in 10", "machine hours", "efficiency", "failures", "rows again"):
        table.add_column(name, justify="right")
    if prices.per_hour is not None:
        table.add_column("job", justify="right")
    for each in planned:
        run, cost = each.typical, cost_of(each.typical, prices)
        table.add_row(
            f"{each.fleet.machines:,}",
            clock(run.seconds),
            clock(each.late.seconds),
            f"{run.machine_seconds / 3600:,.1f}",
            f"{run.efficiency:.1%}",
            f"{run.failures:,}",
            f"{run.repeated:,}",
            *([] if cost is None else [dollars(cost)]),
        )
    return table


def cost_of(run: FleetRun, prices: Prices) -> float | None:
    """Dollars, of all machines."""
    return None if prices.per_hour is None else prices.per_hour * run.machine_seconds / 3600


def cells(each: Option, prices: Prices) -> list[str]:
    from pybatch.api.progress import clock
    from pybatch.jobs.report.summary import duration
    from pybatch.tune.cost import dollars

    weights = f"{each.weight_bytes / 2**30:,.2f} GiB"
    if each.host_weight_bytes:
        weights += f", {each.host_weight_bytes / 2**30:,.2f} on the host"
    first = [each.precision, each.kv_cache_dtype, weights, f"{each.kv_tokens:,}"]
    best, priced = each.best, [""] * (0 if prices.per_hour is None else 2)
    if best is None or each.usage is None or each.job_seconds is None:
        return [*first, *[""] * 6, *priced]
    if cost := prices.cost(each.usage):
        priced = [dollars(cost.dollars), dollars(cost.per_million_tokens)]
    return [
        *first,
        str(best.max_num_seqs),
        f"{best.total_rate:,.0f}",
        f"{duration(best.ttft_p50)} / {duration(best.ttft_p99)}",
        f"{duration(best.tpot_p50)} / {duration(best.tpot_p99)}",
        clock(each.job_seconds) if each.job_seconds >= 60 else duration(each.job_seconds),
        str(each.machines),
        *priced,
    ]
