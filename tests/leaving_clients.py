"""Clients that go away at random moments of their requests."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

AT_ONCE = 64


async def leave_at_random(url: str, key: str, count: int, draw: Random) -> Counter[str]:
    """Returns how many requests were left at which moment."""
    places = asyncio.Semaphore(AT_ONCE)
    left: Counter[str] = Counter()

    async def one() -> None:
        async with places:
            left[await leave(url, key, draw)] += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return left


async def leave(url: str, key: str, draw: Random) -> str:
    """Sends one request, or a part of it, and goes. Returns the moment."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    path, body = request(draw)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\nx-api-key: {key}\r\n"
    data = f"{head}Connection: close\r\n\r\n".encode() + content
    whole = draw.random() < 0.85
    writer.write(data if whole else data[: draw.randrange(1, len(data))])
    answer = b""
    try:
        async with asyncio.timeout(draw.choice((0.0, 0.1, 1.0, 3.0)) * draw.random()):
            while piece := await reader.read(1 << 16):
                answer += piece
        moment = "after the answer"
    except TimeoutError:
        moment = "in the answer" if answer else "before the answer" if whole else "in the request"
    assert answer[:12] in (b"", b"HTTP/1.1 200"), answer
    if draw.random() < 0.5:
        writer.transport.abort()  # a reset in place of an orderly end
    writer.close()
    return moment


def request(draw: Random) -> tuple[str, dict[str, Any]]:
    """A path and a body."""
    text = "abcdefgh " * draw.randrange(1, 40)
    options: dict[str, Any] = {"model": "tiny", "stream": draw.random() < 0.5, "max_tokens": draw.randrange(1, 120)}
    match draw.randrange(4):
        case 0:
            path, own = "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "ignore_eos": True}
        case 1:
            messages = [{"role": "user", "content": text}]
            path, own = "/v1/chat/completions", {"messages": messages, "n": draw.randrange(2, 5), "ignore_eos": True}
        case 2:
            prompts = [text + str(number) for number in range(draw.randrange(1, 5))]
            path, own = "/v1/completions", {"prompt": prompts, "ignore_eos": True}
        case _:
            path, own = "/v1/messages", {"messages": [{"role": "user", "content": text}]}
    return path, {**options, **own}
