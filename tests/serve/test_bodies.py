from __future__ import annotations

import asyncio
import json
import threading

from fastapi import Request
from starlette.types import Message

from pybatch.serve.bodies import ON_LOOP, read


def test_a_large_body_is_read_and_checked_beside_the_event_loop() -> None:
    def request(content: bytes) -> Request:
        async def receive() -> Message:
            return {"type": "http.request", "body": content}

        return Request({"type": "http", "headers": []}, receive)

    async def threads(body: object) -> tuple[int, int]:
        parsed, thread = await read(request(json.dumps(body).encode()), lambda body: threading.get_ident())
        assert parsed == body
        return threading.get_ident(), thread

    loop, made = asyncio.run(threads(["a"]))
    assert made == loop
    loop, made = asyncio.run(threads(["a" * ON_LOOP]))
    assert made != loop
