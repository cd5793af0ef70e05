"""What traces cost a job: rows a second with a trace for each row and without, one after the other.

    python bench/traces.py [--model smollm2-135m] [--rows 96] [--pairs 8] [--json PATH]

Jobs run in this process. The collector is one of its own, with the lowest priority, and takes spans as Latitude does,
is down, slow (3 seconds a request), or answers 429 or 500. A job's time goes from its beginning to its last row; what
the end of the traces takes after that is told apart. The cost is that of each pair, with and without, whose order
alternates; its interval is a bootstrap of the median. The time on the engine's thread is that of `RowTraces.take`, the
one on the sender's thread all that it does, in processor time; both together are the share of all processor time, which
a noisy machine does not hide.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pybatch
from pybatch.jobs.job import Job, Saved
from pybatch.jobs.row_traces import RowTraces
from pybatch.latitude import Tracing
from pybatch.telemetry.sender import Exporter

COLLECTOR = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
os.nice(19)
status, seconds = int(sys.argv[1]), float(sys.argv[2])
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(seconds)
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *args):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
COLLECTORS = {
    "takes all": (202, 0.0),
    "down": None,
    "slow": (202, 3.0),
    "answers 429": (429, 0.0),
    "answers 500": (500, 0.0),
}


@contextmanager
def collector(kind: str) -> Iterator[None]:
    """Sets the variables of the environment that name it."""
    os.environ["LATITUDE_API_KEY"] = "a-key"
    how = COLLECTORS[kind]
    if how is None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            os.environ["LATITUDE_TELEMETRY_URL"] = f"http://127.0.0.1:{taken.getsockname()[1]}"
            yield
        return
    process = subprocess.Popen([sys.executable, "-c", COLLECTOR, *map(str, how)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        os.environ["LATITUDE_TELEMETRY_URL"] = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        yield
    finally:
        process.kill()
        process.wait()


class Stopwatch:
    """Of the jobs of this process, and of the threads that trace them. seconds: of the last job, to its last row."""

    def __init__(self) -> None:
        self.begun = self.seconds = 0.0
        self.taking = self.sending = 0.0
        self.rows = self.sent = 0
        save, take, export = Job.save, RowTraces.take, Exporter.export

        def timed_save(job: Job, *args: Any, **kwargs: Any) -> None:
            save(job, *args, **kwargs)
            self.seconds = time.perf_counter() - self.begun

        def timed_take(traces: RowTraces, saved: Saved) -> None:
            begin = time.perf_counter()
            take(traces, saved)
            self.taking += time.perf_counter() - begin
            self.rows += 1

        def timed_export(exporter: Exporter, spans: Any) -> Any:
            begin = time.thread_time()
            result = export(exporter, spans)
            self.sending += time.thread_time() - begin
            self.sent += len(spans)
            return result

        Job.save, RowTraces.take, Exporter.export = timed_save, timed_take, timed_export  # type: ignore[method-assign]


def median_interval(values: list[float]) -> tuple[float, float]:
    """95%, by a bootstrap."""
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(4000))
    return medians[100], medians[3899]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--pairs", type=int, default=8, help="with the collector that takes all; others have a quarter")
    parser.add_argument("--content", action="store_true", help="send prompts and answers too")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    llm = pybatch.LLM(args.model, quantization="int8", num_kv_blocks=1024)
    watch = Stopwatch()
    folder = Path(tempfile.mkdtemp())
    rows = [{"prompt": f"Write about the number {number}.", "user": f"u{number % 7}"} for number in range(args.rows)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracing = Tracing("bench", session="{user}", tags=["bench"], metadata={"user": "{user}"}, content=args.content)

    def run(traced: bool) -> tuple[float, float, float, bytes]:
        """Rows a second, seconds of processors, seconds from the last row to the end, and what was written."""
        watch.begun, busy = time.perf_counter(), time.process_time()
        pybatch.run_job(
            folder / "rows.jsonl",
            llm,
            folder / "out.jsonl",
            fresh=True,
            use_tqdm=False,
            temperature=0,
            max_tokens=args.tokens,
            ignore_eos=True,
            latitude=tracing if traced else None,
        )
        after = time.perf_counter() - watch.begun - watch.seconds
        return args.rows / watch.seconds, time.process_time() - busy, after, (folder / "out.jsonl").read_bytes()

    run(False)  # buffers grow
    *_, expected = run(False)
    table = Table(title=f"{args.rows} rows of {args.tokens} tokens, {Path(args.model).name}: what traces cost")
    for name in (
        "the collector",
        "rows/s without",
        "with",
        "cost",
        "95%",
        "of its CPU time",
        "s at the end",
        "same bytes",
    ):
        table.add_column(name, justify="right")
    results: dict[str, Any] = {}
    for kind in COLLECTORS:
        without, with_traces, ends = [], [], []
        plain_busy = traced_busy = 0.0
        spent = watch.taking + watch.sending
        same = True
        with collector(kind):
            for number in range(args.pairs if kind == "takes all" else max(2, args.pairs // 4)):
                for traced in (False, True) if number % 2 else (True, False):
                    rate, busy, after, written = run(traced)
                    plain_busy, traced_busy = plain_busy + busy * (not traced), traced_busy + busy * traced
                    (with_traces if traced else without).append(rate)
                    same &= written == expected
                    if traced:
                        ends.append(after)
        costs = [1 - traced / plain for plain, traced in zip(without, with_traces, strict=True)]
        low, high = median_interval(costs)
        results[kind] = {
            "rows_per_second_without": without,
            "rows_per_second_with": with_traces,
            "cost": statistics.median(costs),
            "cost_95": [low, high],
            "processor_seconds": [plain_busy / len(without), traced_busy / len(without)],
            "share_of_processor_time": (watch.taking + watch.sending - spent) / traced_busy,
            "seconds_at_the_end": statistics.median(ends),
            "same_bytes": same,
        }
        figures = statistics.median(without), statistics.median(with_traces)
        table.add_row(
            kind,
            *(f"{figure:.2f}" for figure in figures),
            f"{statistics.median(costs):+.2%}",
            f"{low:+.2%} to {high:+.2%}",
            f"{results[kind]['share_of_processor_time']:.2%}",
            f"{statistics.median(ends):.2f}",
            "yes" if same else "NO",
        )
    console = Console(width=120)
    console.print(table)
    per_row = {"engine": watch.taking / watch.rows, "sender": watch.sending / max(1, watch.sent)}
    console.print(
        f"A row takes {per_row['engine'] * 1e6:.1f} us of the engine's thread and {per_row['sender'] * 1e6:.0f} us of "
        "the sender's."
    )
    if args.json is not None:
        told = {
            "date": str(date.today()),
            "machine": platform.processor() or platform.machine(),
            "model": args.model,
            "rows": args.rows,
            "tokens": args.tokens,
            "content": args.content,
            "collectors": results,
            "seconds_per_row": per_row,
        }
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
