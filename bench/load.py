"""Sends chat requests to an OpenAI-compatible server and times their streams. Run by bench/serving.py, as a process of
its own with nothing but the standard library, so that it takes little of the machine that it shares with the server.

Reads one load as JSON from standard input, and writes the requests' times as JSON to standard output.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Load:
    """clients: of a closed loop, each of which sends its next request when the last one has ended. rate: of an open
    loop, in requests a second that arrive at random (a Poisson process), however many run. One of them is set.

    body: sent with each request beside its messages. words: of each prompt, drawn evenly from this range. warmup: the
    first seconds, in which requests are sent and not counted.
    """

    url: str
    body: dict[str, Any]
    words: tuple[int, int]
    seconds: float
    warmup: float
    clients: int | None = None
    rate: float | None = None
    seed: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Timed:
    """A request, in seconds since the load began. first: its first text; last: the newest. None: not yet. done: its
    stream has ended as it should."""

    sent: float
    first: float | None = None
    last: float | None = None
    pieces: int = 0
    tokens: int = 0  # by the server's own count, or else the pieces
    done: bool = False
    error: str = ""


WORDS = [
    *("river", "stone", "window", "garden", "morning", "letter", "engine", "copper", "winter", "market", "bridge"),
    *("candle", "forest", "signal", "harbor", "silver", "meadow", "tunnel", "orange", "castle", "ribbon", "planet"),
    *("violin", "anchor", "desert", "mirror", "pepper", "island", "lantern", "thunder"),
]


def prompts(load: Load) -> Any:
    rng = random.Random(load.seed)
    while True:
        words = " ".join(rng.choices(WORDS, k=rng.randint(*load.words)))
        yield f"Write a story with these words: {words}."


class Client:
    """Connections to one server, used again once a response has ended."""

    def __init__(self, load: Load, start: float) -> None:
        self.load, self.start = load, start
        parts = urlsplit(load.url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.path = f"{parts.path.rstrip('/')}/v1/chat/completions"
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.prompts = prompts(load)

    def now(self) -> float:
        return time.perf_counter() - self.start

    def message(self, prompt: str) -> bytes:
        body = json.dumps(
            {**self.load.body, "messages": [{"role": "user", "content": prompt}], "stream": True}
        ).encode()
        headers = {"Host": f"{self.host}:{self.port}", "Content-Type": "application/json", **self.load.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    async def ask(self, timed: Timed) -> None:
        """Fills in the times, also of a request that is cancelled."""
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(self.message(next(self.prompts)))
            status = int((await reader.readline()).split()[1])
            chunked = False
            length = 0
            while (line := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.lower().partition(b":")
                chunked |= name == b"transfer-encoding" and b"chunked" in value
                length = int(value) if name == b"content-length" else length
            if status != 200 or not chunked:
                timed.error = f"{status} {(await reader.read(length or 300))[:300]!r}"
                raise ConnectionError(timed.error)
            rest = b""
            while size := int(await reader.readline(), 16):
                data = await reader.readexactly(size + 2)
                events = (rest + data[:-2]).replace(b"\r\n", b"\n").split(b"\n\n")
                rest = events.pop()
                for event in events:
                    self.read(event, timed)
            await reader.readline()
            timed.tokens = timed.tokens or timed.pieces
            self.idle.append((reader, writer))
        except BaseException as error:
            writer.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            timed.error = timed.error or f"{type(error).__name__}: {error}"

    def read(self, event: bytes, timed: Timed) -> None:
        if not event.startswith(b"data: ") or event == b"data: [DONE]":
            timed.done |= event == b"data: [DONE]"
            return
        if b'"content"' in event:  # the first piece has the role alone, or an empty text
            content = json.loads(event[6:])["choices"][0]["delta"].get("content")
            if content:
                timed.last = self.now()
                timed.first = timed.first if timed.first is not None else timed.last
                timed.pieces += 1
        elif b'"usage":{' in event.replace(b" ", b""):
            timed.tokens = json.loads(event[6:])["usage"]["completion_tokens"]


async def run(load: Load) -> dict[str, Any]:
    client = Client(load, time.perf_counter())
    requests: list[Timed] = []
    end = load.warmup + load.seconds

    async def ask() -> None:
        requests.append(Timed(client.now()))
        await client.ask(requests[-1])
        if requests[-1].error:
            await asyncio.sleep(0.1)  # a server that refuses is not flooded

    async def loop() -> None:
        while client.now() < end:
            await ask()

    async def arrivals() -> None:
        assert load.rate is not None
        rng = random.Random(load.seed + 1)
        at = 0.0
        async with asyncio.TaskGroup() as group:
            while (at := at + rng.expovariate(load.rate)) < end:
                await asyncio.sleep(at - client.now())
                group.create_task(ask())

    cpu = time.process_time()
    with suppress(TimeoutError):
        async with asyncio.timeout(end), asyncio.TaskGroup() as group:
            for _ in range(load.clients or 0):
                group.create_task(loop())
            if load.rate is not None:
                group.create_task(arrivals())
    wall = client.now()
    return {"requests": [asdict(each) for each in requests], "end": wall, "cpu": (time.process_time() - cpu) / wall}


def main() -> None:
    print(json.dumps(asyncio.run(run(Load(**json.load(sys.stdin))))))


if __name__ == "__main__":
    main()
