"""Batches as clients send them, and waiting for their end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import openai
from openai.types import Batch

ENDED = ("completed", "failed", "expired", "cancelled")
SECONDS = 60

T = TypeVar("T")


def chat_row(number: int, text: str | None = None, **body: Any) -> dict[str, Any]:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": text or f"Say {number}"}], "max_tokens": 8}
    return {
        "custom_id": f"row-{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {**asked, "temperature": number % 2, **body},
    }


def json_lines(rows: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def create(client: openai.OpenAI, content: bytes, name: str = "in.jsonl", **arguments: Any) -> Batch:
    """arguments: over those that a batch needs."""
    file = client.files.create(file=(name, content), purpose="batch")
    needed: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.batches.create(input_file_id=file.id, **(needed | arguments))


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    return until(lambda: client.batches.retrieve(batch.id), lambda now: now.status in ENDED)


def until(read: Callable[[], T], wanted: Callable[[T], bool]) -> T:
    """Reads again and again."""
    deadline = time.monotonic() + SECONDS
    while not wanted(now := read()):
        assert time.monotonic() < deadline, now
        time.sleep(0.01)
    return now


def lines_of(client: openai.OpenAI, file: str | None) -> list[Any]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]
