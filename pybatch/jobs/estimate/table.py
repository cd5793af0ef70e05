"""An estimate as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from pybatch.api.progress import clock
from pybatch.jobs.estimate.estimate import Estimate
from pybatch.tune.cost import Prices


def estimate_table(estimate: Estimate, prices: Prices) -> Table:
    table = Table(title="Estimate", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (*figures(estimate), *prices.figures(estimate.usage).items()):
        table.add_row(name, value)
    return table


def figures(estimate: Estimate) -> Iterator[tuple[str, str]]:
    prompt, trial, memory = max(1, estimate.prompt_tokens), estimate.trial, estimate.memory
    yield "rows", f"{estimate.rows + estimate.rows_done:,}"
    if estimate.rows_done:
        yield "  done already", f"{estimate.rows_done:,}"
    if estimate.rows_in_cache:
        yield "  found in the cache", f"{estimate.rows_in_cache:,}"
    for code, kind in sorted(estimate.errors.items()):
        yield f"  bad: {code.replace('_', ' ')}", f"{kind.rows:,}"
    if estimate.repeated_rows:
        yield "  that repeat others", f"{estimate.repeated_rows:,}"
    left = " of the rows left" if estimate.rows_done else ""
    yield f"prompt tokens{left}", f"{estimate.prompt_tokens:,} (longest {estimate.longest_prompt:,})"
    if estimate.repeated_rows:
        yield "  of rows that repeat others", f"{estimate.repeated_prompt_tokens:,}"
    yield "  in shared prefixes", f"{estimate.shared_prompt_tokens:,} ({estimate.shared_prompt_tokens / prompt:.1%})"
    yield (
        "  found cached, expected",
        f"{estimate.cached_prompt_tokens:,} ({estimate.cached_prompt_tokens / prompt:.1%})",
    )
    yield "output tokens, expected", f"about {estimate.output_tokens:,}"
    yield "  at most", f"{estimate.output_tokens_at_most:,}"
    if trial.rows:
        ended = f"{trial.ended:,} ended by themselves"
        yield "  learnt from", f"{trial.rows:,} rows answered in {trial.seconds:.1f} s, {ended}"
    yield (
        "time, expected",
        f"about {clock(estimate.seconds) if estimate.seconds >= 60 else f'{estimate.seconds:.1f} s'}",
    )
    if estimate.seconds:
        no_work = estimate.repeated_prompt_tokens + estimate.prompt_tokens_in_cache
        rate = (estimate.prompt_tokens - no_work + estimate.output_tokens) / estimate.seconds
        yield "  throughput", f"{rate:,.0f} tok/s, {estimate.sequences_in_a_step:.1f} sequences in a step"
    if estimate.preemptions:
        yield "  preemptions", f"{estimate.preemptions:,}: more KV blocks would save them"
    yield "memory, peak", mebibytes(memory.peak)
    yield "  weights", mebibytes(memory.weights)
    yield "  KV cache, used at most", f"{mebibytes(memory.kv_cache_peak)} of {mebibytes(memory.kv_cache)}"
    yield "  with prefixes kept", mebibytes(memory.kv_cache_touched)


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
