"""The figures of a job at its end, and the table that is printed of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from pybatch.api.metrics import without_nan
from pybatch.api.progress import BatchProgress, clock
from pybatch.engine.metrics import MetricsSummary
from pybatch.jobs.failures import FailureTally
from pybatch.machine.memory import peak_memory
from pybatch.tune.cost import UNKNOWN, Prices, Usage


def summary_figures(
    progress: BatchProgress, metrics: MetricsSummary, failures: FailureTally | None = None, prices: Prices = UNKNOWN
) -> dict[str, str]:
    """The job's rows, throughput, latencies, memory and cost, by name. metrics: of an engine that has run nothing but
    this job."""
    seconds = progress.seconds
    from_disk = f", {metrics.disk_tokens:,} of them from disk" if metrics.disk_tokens else ""
    failed = f" ({progress.rows_failed:,} failed)" if progress.rows_failed else ""
    special = {
        "cached rows": progress.rows_cached,
        "resumed rows": progress.rows_resumed,
        "retried rows": progress.rows_retried,
    }
    return {
        "rows": f"{progress.rows_done:,}{failed}",
        **{f"failed: {kind.code}": f"{kind.count:,}" for kind in failures or ()},
        **{name: f"{count:,}" for name, count in special.items() if count},
        "wall time": clock(seconds) if seconds >= 60 else f"{seconds:.2f} s",
        "prompt tokens": f"{progress.prompt_tokens:,}",
        "output tokens": f"{progress.output_tokens:,}",
        "output throughput": f"{progress.output_tokens / seconds:,.1f} tok/s",
        "total throughput": f"{(progress.prompt_tokens + progress.output_tokens) / seconds:,.1f} tok/s",
        "TTFT p50 / p99": f"{duration(metrics.ttft_p50)} / {duration(metrics.ttft_p99)}",
        "TPOT p50 / p99": f"{duration(metrics.tpot_p50)} / {duration(metrics.tpot_p99)}",
        "sequences in a step": f"{metrics.batch_occupancy:.1f} (peak {metrics.peak_batch})",
        "KV blocks, peak": f"{metrics.peak_kv_blocks:,} of {metrics.kv_blocks:,}",
        "prefix hits": f"{metrics.cached_tokens / max(1, metrics.prompt_tokens):.1%} of prompt tokens{from_disk}",
        "preemptions": f"{metrics.preemptions:,}",
        "peak memory": f"{peak_memory() / 2**20:,.0f} MiB",
        **prices.figures(usage_of(progress)),
    }


def usage_of(progress: BatchProgress) -> Usage:
    """What this run has done: rows that were there before have cost it nothing."""
    rows = progress.rows_done - progress.rows_resumed
    return Usage(progress.seconds, rows, progress.prompt_tokens, progress.output_tokens)


def summary_json(
    progress: BatchProgress, metrics: MetricsSummary, failures: FailureTally, prices: Prices
) -> dict[str, Any]:
    """The same figures as numbers. Times in seconds, memory in bytes; null: nothing was measured."""
    return {
        "rows": progress.rows_done,
        "rows_failed": progress.rows_failed,
        "failures": {kind.code: kind.count for kind in failures},
        "rows_cached": progress.rows_cached,
        "rows_resumed": progress.rows_resumed,
        "rows_retried": progress.rows_retried,
        "seconds": progress.seconds,
        "prompt_tokens": progress.prompt_tokens,
        "output_tokens": progress.output_tokens,
        "peak_memory": peak_memory(),
        "cost": prices.to_json(usage_of(progress)),
        "engine": without_nan(asdict(metrics)),
    }


def summary_table(
    progress: BatchProgress, metrics: MetricsSummary, failures: FailureTally | None = None, prices: Prices = UNKNOWN
) -> Table:
    table = Table(title="Summary", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in summary_figures(progress, metrics, failures, prices).items():
        table.add_row(name, value)
    return table


def duration(seconds: float) -> str:
    """Milliseconds or seconds; a dash for NaN, which stands for nothing measured."""
    if seconds != seconds:
        return "-"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
