"""Clients that go away at random moments of their requests, and what they leave in the server.

    python bench/disconnects.py [--disconnects 1000] [--seed 0] [--model DIR] [--json PATH]

Chat completions, completions of several prompts and messages, whole and streamed, with up to four samples, 64 at a
time; each is left in the middle of its body, while it waits, while it is prefilled or while it is answered, half of
them by a reset of the connection. The server runs in this process. Checked at the end: no request is open, in the
server or in the engine; the engine's integrity check passes, and all KV blocks are free; no task is left; no place
in the key's limits is taken; the same request has the same answer as before.

Without --model a tiny random model is made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from pybatch.api.async_llm import AsyncLLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

KEY = "sk-bench"


def answer(url: str) -> str:
    body = {"model": "tiny", "prompt": "The same as before", "max_tokens": 32, "seed": 7}
    response = httpx.post(f"{url}/v1/completions", json=body, headers={"x-api-key": KEY}, timeout=60)
    text: str = response.json()["choices"][0]["text"]
    return text


def run(model: Path, disconnects: int, seed: int) -> dict[str, Any]:
    from leaving_clients import leave_at_random
    from local_server import local_server

    llm = AsyncLLM(model, num_kv_blocks=256, max_num_seqs=32)
    with local_server(llm, api_key=[KEY], max_concurrent_requests=1000) as server:
        before = answer(server.url)
        begin = time.monotonic()
        left = asyncio.run(leave_at_random(server.url, KEY, disconnects, random.Random(seed)))
        seconds = time.monotonic() - begin
        server.expect_idle()
        settled = time.monotonic() - begin - seconds
        while server.server.server_state.tasks:
            time.sleep(0.01)
        (account,) = server.server.app.state.accounts.of_keys.values()
        assert account.running == 0, "a place in the key's limits is taken"
        assert answer(server.url) == before, "the same request has another answer"
        server.expect_idle()
        waiting, running = llm.engine.num_waiting, llm.engine.num_running
    llm.close()
    return {
        "disconnects": disconnects,
        "seed": seed,
        "moments": dict(sorted(left.items())),
        "seconds": round(seconds, 1),
        "settled_after_seconds": round(settled, 2),
        "left": {"requests": waiting + running, "tasks": 0, "blocks": 0},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            from tiny_model import save_tiny_model

            model = save_tiny_model(Path(folder))
        result = run(model, arguments.disconnects, arguments.seed)
    table = Table("left", "requests")
    for moment, count in result["moments"].items():
        table.add_row(moment, str(count))
    Console().print(table, f"{result['seconds']} s; nothing left {result['settled_after_seconds']} s later")
    if arguments.json is not None:
        about = {"date": str(date.today()), "python": platform.python_version()}
        arguments.json.write_text(json.dumps({**about, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
