"""Clients that go away at random moments of their requests."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

AT_ONCE = 64


async def leave_at_random(url: str, key: str, count: int, draw: Random) -> Counter[str]:
    """Returns how many requests of each kind were left."""
    places = asyncio.Semaphore(AT_ONCE)
    left: Counter[str] = Counter()

    async def one() -> None:
        async with places:
            left[await leave(url, key, draw)] += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return left


async def leave(url: str, key: str, draw: Random) -> str:
    """Sends one request, or a part of it, and goes. Returns what kind of request it was."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    path, body, kind = request(draw)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\nx-api-key: {key}\r\n\r\n"
    data = head.encode() + content
    if draw.random() < 0.2:
        kind, data = "in the body", data[: draw.randrange(1, len(data))]
    try:
        writer.write(data)
        await writer.drain()
        seconds = draw.choice((0.0, 0.002, 0.01, 0.05, 0.2)) * draw.random()
        try:
            async with asyncio.timeout(seconds):
                while await reader.read(1 << 16):  # to the end of the answer, or until it is time to go
                    pass
        except TimeoutError:
            pass
    except ConnectionError:
        pass
    finally:
        if draw.random() < 0.5:
            writer.transport.abort()  # a reset in place of an orderly end
        writer.close()
    return kind


def request(draw: Random) -> tuple[str, dict[str, Any], str]:
    """A path, a body, and whether its answer is whole or streamed."""
    text = "abcdefgh " * draw.randrange(1, 40)
    stream = draw.random() < 0.5
    options: dict[str, Any] = {"model": "tiny", "stream": stream, "max_tokens": draw.randrange(1, 120)}
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
    return path, {**options, **own}, "streamed" if stream else "whole"
