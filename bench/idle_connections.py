"""Holds many idle connections to a server, and measures how it answers meanwhile.

    python bench/idle_connections.py [--connections 10000] [--requests 200] [--model DIR] [--json PATH]

`pybatch serve` in a process of its own. Half of the connections have sent nothing, half have had an answer and are kept
alive. Reported: how long it takes to open them; the latency of GET /v1/models and of a chat completion of one token on
a connection of its own for each request, with and without the idle ones; the server's memory.

Without --model a tiny random model is made. Both processes need as many open files as there are connections.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import socket
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from pybatch.serve.guard.binding import raise_open_files_limit

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


def milliseconds(requests: int, send: Any) -> dict[str, float]:
    took = []
    for _ in range(requests):
        begin = time.perf_counter()
        send().raise_for_status()
        took.append(1000 * (time.perf_counter() - begin))
    took.sort()
    return {"p50": round(statistics.median(took), 2), "p99": round(took[int(len(took) * 0.99)], 2)}


def measure(url: str, process: psutil.Process, requests: int) -> dict[str, Any]:
    with httpx.Client() as kept:  # its certificate store takes longer to load than a request takes
        fresh = {"Connection": "close"}
        return {
            "models_ms": milliseconds(requests, lambda: kept.get(f"{url}/v1/models", headers=fresh)),
            "chat_ms": milliseconds(
                requests, lambda: kept.post(f"{url}/v1/chat/completions", json=CHAT, headers=fresh)
            ),
            "rss_mib": round(process.memory_info().rss / 2**20, 1),
        }


def connect(url: str, used: bool) -> socket.socket:
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection = socket.create_connection((host, int(port)), 30)
    if used:
        connection.sendall(GET)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    return connection


def is_open(connection: socket.socket) -> bool:
    """As far as this side knows: a closed one has something to read, its end."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(65536))  # of an answer, its body
    except BlockingIOError:
        return True
    except OSError:
        return False


def run(model: Path, connections: int, requests: int) -> dict[str, Any]:
    from live_server import serving

    with serving(model, "--served-model-name", "tiny") as server:
        raise_open_files_limit()  # of this process; the server has begun with the usual one
        process = psutil.Process(server.process.pid)
        measure(server.url, process, 20)
        alone = measure(server.url, process, requests)
        begin = time.perf_counter()
        held = [connect(server.url, number % 2 == 1) for number in range(connections)]
        seconds = time.perf_counter() - begin
        with_idle = measure(server.url, process, requests)
        still = sum(is_open(each) and is_open(each) for each in held)
        server_files = process.num_fds()
        begin = time.perf_counter()
        for each in held:
            each.close()
        after = measure(server.url, process, requests)
        code = server.stop()
    return {
        "connections": connections,
        "still_open_after_the_requests": still,
        "seconds_to_open": round(seconds, 2),
        "server_open_files": server_files,
        "alone": alone,
        "with_idle": with_idle,
        "after": after,
        "exit_code": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            from tiny_model import save_tiny_model

            model = save_tiny_model(Path(folder))
        result = run(model, arguments.connections, arguments.requests)
    table = Table("", "GET /v1/models p50, p99 ms", "chat p50, p99 ms", "memory MiB")
    for name in ("alone", "with_idle", "after"):
        row = result[name]
        cells = [f"{row[each]['p50']}, {row[each]['p99']}" for each in ("models_ms", "chat_ms")]
        table.add_row(name, *cells, str(row["rss_mib"]))
    opened = f"{result['connections']} opened in {result['seconds_to_open']} s"
    Console().print(table, f"{opened}, {result['still_open_after_the_requests']} still open after the requests")
    if arguments.json is not None:
        about = {"date": str(date.today()), "python": platform.python_version()}
        arguments.json.write_text(json.dumps({**about, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
