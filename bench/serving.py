"""Latency and throughput of servers under load: chat alone, and chat while a batch runs.

    python bench/serving.py --quick --json result.json --png result.png
    python bench/serving.py --server pybatch:int8 --server pybatch:gguf \\
        --server llamacpp,python=PATH/python --server vllm,python=PATH/python,model=PATH --server mine,url=http://HOST:PORT

The same client (bench/load.py) sends the same prompts to every server: chat completions, streamed, greedy, of a fixed
length (ignore_eos, or a bias against the end token). Closed loops have a number of clients that each wait for an answer
before they ask again; open loops have requests that arrive at random at a given rate. All servers are loaded, one is
measured at a time, and each round measures every server once at every load, so that a slow spell of the machine hits
all alike; figures are medians of the rounds.

TTFT is from sending a request to its first text; TPOT is the mean time between tokens after that; goodput is the share
of requests that keep both within the stated targets. A request that has no text when the load ends counts with the time
that it has waited, which is less than it would have.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import psutil
from engines.environment import engine_environment
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
START_SECONDS = 300  # vLLM takes minutes
SETTLE_SECONDS = 120


# ---- servers ----


@dataclass
class Server:
    """body: what requests to it need beside the common fields. process: None if it was not started here."""

    name: str
    url: str
    model: str
    body: dict[str, Any] = field(default_factory=dict)
    process: psutil.Process | None = None

    def ask(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """POST if there is a body, which is sent as JSON unless it is bytes."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        with urllib.request.urlopen(request, timeout=SETTLE_SECONDS) as response:
            return json.load(response)

    def settle(self) -> None:
        """Waits until it answers at once: what was cancelled has left it."""
        until = time.monotonic() + SETTLE_SECONDS
        body = {"model": self.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        while True:
            start = time.monotonic()
            self.ask("/v1/chat/completions", body)
            if time.monotonic() - start < 1 or time.monotonic() > until:
                return

    def cpu_seconds(self) -> float:
        """0 for a server that was not started here."""
        if self.process is None:
            return 0.0
        return sum(sum(each.cpu_times()[:2]) for each in [self.process, *self.process.children(recursive=True)])


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def command_of(kind: str, precision: str, python: str, model: str, threads: int, port: int) -> list[str]:
    if kind == "pybatch":
        quantization = [] if precision in ("", "auto") else ["--quantization", precision]
        common = ["--max-model-len", "1024", "--threads", str(threads), "--served-model-name", "model"]
        return [python, "-m", "pybatch", "serve", model, "--port", str(port), *common, *quantization]
    if kind == "llamacpp":
        options = ["--n_ctx", "1024", "--n_threads", str(threads), "--n_threads_batch", str(threads)]
        options += ["--interrupt_requests", "False", "--model_alias", "model", "--verbose", "False"]
        return [python, str(HERE / "engines/llamacpp_server.py"), "--model", model, "--port", str(port), *options]
    if kind == "vllm":
        options = ["--max-model-len", "1024", "--served-model-name", "model", "--dtype", "float32"]
        return [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port), *options]
    raise SystemExit(f"{kind!r}: expected pybatch, llamacpp, vllm, or a name with url=")


@contextmanager
def serving(spec: str, args: argparse.Namespace) -> Iterator[Server]:
    """A server that runs, from NAME[:PRECISION][,url=URL | ,python=PATH][,model=MODEL]."""
    name, *options = spec.split(",")
    settings = dict(option.split("=", 1) for option in options)
    if not settings.keys() <= {"url", "python", "model"}:
        raise SystemExit(f"{spec!r}: expected NAME[:PRECISION][,url=URL | ,python=PATH][,model=MODEL]")
    kind, _, precision = name.partition(":")
    # llama.cpp's server knows no ignore_eos; SmolLM2's end token has the id 2.
    body = {"logit_bias": {"2": -100}} if kind == "llamacpp" else {"ignore_eos": True}
    if "url" in settings:
        url = settings["url"].rstrip("/").removesuffix("/v1")
        yield named(Server(name, url, settings.get("model", ""), body))
        return
    model = settings.get("model", args.model if kind == "pybatch" else gguf_file(args.model))
    port = free_port()
    command = command_of(kind, precision, settings.get("python", sys.executable), model, args.threads, port)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=engine_environment(args.threads))
        try:
            server = Server(name, f"http://127.0.0.1:{port}", "model", body, psutil.Process(process.pid))
            until = time.monotonic() + START_SECONDS
            while not answers(server):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(f"{name}: the server has not started:\n{log.read()[-2000:]}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(server: Server) -> bool:
    try:
        server.ask("/v1/models")
    except URLError:
        return False
    return True


def named(server: Server) -> Server:
    server.model = server.model or server.ask("/v1/models")["data"][0]["id"]
    return server


def gguf_file(model: str) -> str:
    """Where pybatch finds it, so that others have the same weights."""
    from pybatch.model.checkpoints.find import find_model

    return str(find_model(model))


# ---- loads ----


@dataclass(frozen=True)
class Case:
    """clients or rate: as in bench/load.py. batch: while a batch runs."""

    clients: int | None = None
    rate: float | None = None
    batch: bool = False

    def __str__(self) -> str:
        kind = f"{self.clients} clients" if self.clients else f"{self.rate:g} requests/s"
        return f"{kind} over a batch" if self.batch else kind


def run_load(server: Server, case: Case, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One load, and what it comes to."""
    load = {
        "url": server.url,
        "body": {
            **{"model": server.model, "max_tokens": args.output, "temperature": 0},
            **{"stream_options": {"include_usage": True}, **server.body},
        },
        "words": args.words,
        "seconds": args.seconds,
        "warmup": args.warmup,
        "clients": case.clients,
        "rate": case.rate,
        "seed": seed,
    }
    cpu, wall = server.cpu_seconds(), time.perf_counter()
    done = subprocess.run([sys.executable, HERE / "load.py"], input=json.dumps(load), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{server.name}: the load has failed")
    cpu, wall = server.cpu_seconds() - cpu, time.perf_counter() - wall
    return {**figures(json.loads(done.stdout), args), "server_cpu": cpu / wall}


def figures(result: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Of the requests that were sent after the warm-up, or wait since then. Tokens count when they came, whenever they
    were asked for."""
    end = result["end"]
    failed = [each for each in result["requests"] if each["error"]]
    answered = [each for each in result["requests"] if not each["error"]]
    requests = [each for each in answered if each["sent"] >= args.warmup or each["first"] is None]
    done = [each for each in result["requests"] if each["done"] and each["pieces"]]
    per_piece = sum(each["tokens"] for each in done) / max(sum(each["pieces"] for each in done), 1) if done else 1.0
    tokens = 0.0
    for each in result["requests"]:
        if each["first"] is not None:
            span = each["last"] - each["first"]
            inside = each["last"] - max(each["first"], args.warmup)
            share = min(max(inside / span, 0.0), 1.0) if span else float(each["first"] >= args.warmup)
            tokens += share * (each["tokens"] if each["done"] else each["pieces"] * per_piece)
    ttft = [(end if each["first"] is None else each["first"]) - each["sent"] for each in requests]
    tpot = [
        (each["last"] - each["first"]) / (each["tokens"] - 1)
        for each in requests
        if each["done"] and each["tokens"] > 1
    ]
    judged = [each for each in requests if each["done"] or end - each["sent"] > args.ttft + args.tpot * args.output]
    good = sum(
        each["done"]
        and each["first"] - each["sent"] <= args.ttft
        and each["last"] - each["first"] <= args.tpot * max(each["tokens"] - 1, 1)
        for each in judged
    )
    return {
        "requests": len(requests),
        "failed": len(failed),
        "errors": sorted({each["error"] for each in failed})[:3],
        "finished": sum(each["done"] for each in requests),
        "lengths": sorted({each["tokens"] for each in done}),
        "ttft_p50": quantile(ttft, 0.5),
        "ttft_p99": quantile(ttft, 0.99),
        "tpot_p50": quantile(tpot, 0.5),
        "tpot_p99": quantile(tpot, 0.99),
        "goodput": good / len(judged) if judged else None,
        "tokens_per_s": tokens / (end - args.warmup),
        "client_cpu": result["cpu"],
    }


def quantile(values: list[float], q: float) -> float | None:
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)] if values else None


# ---- a batch beside the load ----


@contextmanager
def running_batch(server: Server, args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """More rows than can be answered meanwhile, of the same kind as the load's requests. Gives "tokens_per_s" of them
    when it is left."""
    rows = [
        {
            "custom_id": f"row {i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                **{"model": server.model, "max_tokens": args.output, "temperature": 0, **server.body},
                "messages": [{"role": "user", "content": f"Write story number {i} of a river and an engine."}],
            },
        }
        for i in range(args.batch_rows)
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = server.ask("/v1/files", *form({"purpose": "batch"}, "rows.jsonl", content))
    batch = server.ask(
        "/v1/batches",
        {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    )
    path = f"/v1/batches/{batch['id']}"
    try:
        until = time.monotonic() + SETTLE_SECONDS
        while (now := server.ask(path))["request_counts"]["completed"] == 0:
            if time.monotonic() > until or now["status"] in ("failed", "completed"):
                raise SystemExit(f"{server.name}: the batch does not run: {now}")
            time.sleep(0.1)
        begun, start = now["request_counts"]["completed"], time.monotonic()
        found: dict[str, float] = {}
        yield found
        now = server.ask(path)
        if now["status"] == "completed":
            raise SystemExit(f"{server.name}: the batch has ended before the load: more --batch-rows are needed")
        rows_done = now["request_counts"]["completed"] - begun
        found["tokens_per_s"] = rows_done * args.output / (time.monotonic() - start)
    finally:
        server.ask(f"{path}/cancel", {})
        until = time.monotonic() + SETTLE_SECONDS
        while server.ask(path)["status"] != "cancelled" and time.monotonic() < until:
            time.sleep(0.1)


def form(fields: dict[str, str], name: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    """A multipart form with one file: its body and its headers."""
    mark = "----------pybatch-bench"
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={mark}"}


def has_batches(server: Server) -> bool:
    try:
        server.ask("/v1/batches")
    except HTTPError:
        return False
    return True


# ---- the whole ----


def measure(servers: list[Server], cases: list[Case], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    with_batches = {server.name for server in servers if has_batches(server)}
    rounds: dict[tuple[str, Case], list[dict[str, Any]]] = {}
    for number in range(args.rounds):
        for case in cases:
            for server in servers:
                if case.batch and server.name not in with_batches:
                    continue
                server.settle()
                with ExitStack() as stack:
                    beside = stack.enter_context(running_batch(server, args)) if case.batch else {}
                    found = run_load(server, case, args, seed=number)
                found["batch_tokens_per_s"] = beside.get("tokens_per_s", 0.0)
                rounds.setdefault((server.name, case), []).append(found)
                print(
                    f"round {number + 1}, {case}, {server.name}: TTFT {milliseconds(found['ttft_p50'])}, "
                    f"TPOT {milliseconds(found['tpot_p50'])}, {found['tokens_per_s']:.0f} tokens/s, "
                    f"client {found['client_cpu']:.0%} of a core",
                    *found["errors"],
                    file=sys.stderr,
                    flush=True,
                )
    results: dict[str, dict[str, Any]] = {server.name: {} for server in servers}
    for (name, case), found in rounds.items():
        entry: dict[str, Any] = {}
        for key in found[0].keys() - {"errors", "lengths"}:
            values = [each[key] for each in found if each[key] is not None]
            entry[key] = statistics.median(values) if values else None
        entry["failed"] = sum(each["failed"] for each in found)
        entry["lengths"] = sorted({length for each in found for length in each["lengths"]})
        entry["rounds"] = found
        results[name][str(case)] = entry
    return results


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.4g} ms"


def show(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    targets = f"TTFT within {args.ttft:g} s and TPOT within {1e3 * args.tpot:g} ms"
    table = Table(
        title=f"Chat, {args.output} tokens each, medians of {args.rounds} rounds; goodput: {targets}; CPU: server "
        "and client, in cores"
    )
    for column in (
        "load",
        "server",
        "TTFT p50",
        "p99",
        "TPOT p50",
        "p99",
        "goodput",
        "tokens/s",
        "batch tokens/s",
        "CPU",
    ):
        table.add_column(column, justify="left" if column in ("load", "server") else "right")
    names = [case for by_case in results.values() for case in by_case]
    for case in dict.fromkeys(names):
        for name, by_case in results.items():
            if case in by_case:
                of = by_case[case]
                times = [milliseconds(of[key]) for key in ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99")]
                good = "" if of["goodput"] is None else f"{of['goodput']:.0%}"
                rates = [f"{of['tokens_per_s']:.0f}", f"{of['batch_tokens_per_s']:.0f}" if "batch" in case else ""]
                cpu = f"{of['server_cpu']:.2f} + {of['client_cpu']:.2f}"
                table.add_row(case, name, *times, good, *rates, cpu)
        table.add_section()
    Console(width=140).print(table)


def draw(results: dict[str, dict[str, Any]], cases: list[Case], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    kinds = [
        ("clients", "chat alone", [case for case in cases if case.clients and not case.batch]),
        ("requests/s", "chat alone, arriving at random", [case for case in cases if case.rate and not case.batch]),
        ("clients", "chat over a batch", [case for case in cases if case.clients and case.batch]),
    ]
    kinds = [kind for kind in kinds if kind[2]]
    quantities = [
        ("time to first token, ms", "ttft", 1e3),
        ("time per output token, ms", "tpot", 1e3),
        ("chat tokens/s", "tokens_per_s", 1),
        ("goodput, % of requests", "goodput", 100),
    ]
    size = (3.6 * len(quantities), 3.1 * len(kinds))
    figure, grid = plt.subplots(len(kinds), len(quantities), figsize=size, squeeze=False, layout="constrained")
    colors = dict(zip(results, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for row, (unit, title, of_kind) in zip(grid, kinds, strict=True):
        for axes, (label, key, scale) in zip(row, quantities, strict=True):
            for name, by_case in results.items():
                known = [case for case in of_kind if str(case) in by_case]
                places = [case.clients or case.rate for case in known]
                for suffix, style in (("_p50", "-"), ("_p99", ":")) if key in ("ttft", "tpot") else (("", "-"),):
                    values = [by_case[str(case)][key + suffix] for case in known]
                    values = [math.nan if value is None else scale * value for value in values]
                    label_of = name if style == "-" else f"{name}, p99"
                    axes.plot(places, values, style, marker="o", markersize=3, color=colors[name], label=label_of)
            axes.set(xlabel=unit, ylabel=label, title=title)
            axes.set_xscale("log", base=2)
            axes.set_xticks([case.clients or case.rate for case in of_kind])
            axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            if key in ("ttft", "tpot") and any(math.isfinite(each) for line in axes.lines for each in line.get_ydata()):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
                axes.yaxis.set_minor_locator(ticker.NullLocator())
            else:
                axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
    grid[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--server", action="append", default=[], metavar="NAME[:PRECISION][,url=URL | ,python=PATH][,model=]"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rates", type=float, nargs="*", default=[1, 2, 4], help="requests/s of open loops")
    parser.add_argument("--batch-clients", type=int, nargs="*", default=[1, 4, 16], help="beside a batch")
    parser.add_argument("--batch-rows", type=int, default=4000)
    parser.add_argument("--words", type=int, nargs=2, default=[10, 100], metavar=("LEAST", "MOST"), help="of a prompt")
    parser.add_argument("--output", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--seconds", type=float, default=15, help="of each load")
    parser.add_argument("--warmup", type=float, default=2, help="seconds before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ttft", type=float, default=1.0, help="target, seconds")
    parser.add_argument("--tpot", type=float, default=0.1, help="target, seconds")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter loads, two rounds: under 8 minutes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path, help="needs matplotlib")
    args = parser.parse_args()
    if args.quick:
        args.clients, args.rates, args.batch_clients = [1, 8, 32], [1, 3], [1, 8]
        args.seconds, args.warmup, args.rounds = 8.0, 1.5, 2

    cases = [*(Case(clients=each) for each in args.clients), *(Case(rate=each) for each in args.rates)]
    cases += [Case(clients=each, batch=True) for each in args.batch_clients]
    with ExitStack() as stack:
        specs = args.server or ["pybatch:int8", "pybatch:gguf"]
        servers = [stack.enter_context(serving(spec, args)) for spec in specs]
        results = measure(servers, cases, args)
    show(results, args)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "cores": psutil.cpu_count(logical=False),
            "command": " ".join(sys.argv),
            "arguments": {name: value for name, value in vars(args).items() if name not in ("json", "png")},
        }
        args.json.write_text(json.dumps({**facts, "results": results}, indent=1))
    if args.png:
        draw(results, cases, args.png)


if __name__ == "__main__":
    main()
