"""Sends the server bodies that nobody should send, and looks at what is left of them.

    python bench/serve_fuzz.py [--requests 100000] [--seed 0] [--json PATH]

Each body is a valid one for one of the POST routes with a few faults in it: values of wrong types, absurd sizes,
unpaired surrogates, unknown, missing and misplaced fields, broken JSON and UTF-8. The application runs in this process,
with its engine on a tiny model, 64 requests at a time and some of them left before their answer. Prints how many
responses had each status; ends with 1 if one was a 500 or no error of the API's shape, took more than a minute, or if
the engine's blocks are not all free in the end. A body is made from the seed and its number alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.app import create_app
from pybatch.serve.service import Service
from pybatch.serve.settings import ServerSettings
from pybatch.serve.store import open_storage

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

SECONDS = 60  # for an answer
AT_ONCE = 64
USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SAMPLING = {
    **{"n": 2, "seed": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "stop": ["a"], "min_tokens": 1},
    **{"presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1, "logit_bias": {"65": 1.5}},
    **{"ignore_eos": True, "stop_token_ids": [5], "bad_words": ["b"], "allowed_token_ids": [65, 66, 67]},
    **{"skip_special_tokens": False, "include_stop_str_in_output": True, "truncate_prompt_tokens": 5, "priority": 1},
    **{"prompt_logprobs": 1, "stream_options": {"include_usage": True}, "user": "u"},
}
CHAT = {"model": "tiny", "messages": [USER], "max_tokens": 4}
COMPLETION = {"model": "tiny", "prompt": "Hello", "max_tokens": 4}
MESSAGE = {"model": "tiny", "messages": [USER], "max_tokens": 4}

Body = dict[str, Any]
BODIES: dict[str, tuple[Body, Body]] = {  # by route: a body, and fields that may be in it besides
    "/v1/chat/completions": (
        CHAT,
        {**SAMPLING, "stream": True, "logprobs": True, "top_logprobs": 2, "tools": [TOOL], "tool_choice": "auto"}
        | {"max_completion_tokens": 3, "continue_final_message": True, "chat_template_kwargs": {"a": 1}, "metadata": {}}
        | {"documents": [{"text": "a"}], "add_generation_prompt": False, "reasoning_effort": "low"},
    ),
    "/v1/completions": (
        COMPLETION,
        {**SAMPLING, "stream": True, "logprobs": 2, "echo": True, "best_of": 2, "suffix": ""}
        | {"prompt": [[65, 66], [67]]},
    ),
    "/v1/messages": (
        MESSAGE,
        {"system": "s", "stop_sequences": ["a"], "temperature": 0.5, "top_k": 3, "top_p": 0.5, "stream": True}
        | {"metadata": {"user_id": "u"}, "tools": [{"name": "f", "input_schema": {"type": "object"}}]}
        | {"tool_choice": {"type": "auto"}, "thinking": {"type": "disabled"}},
    ),
    "/v1/messages/count_tokens": (
        {"model": "tiny", "messages": [USER]},
        {"system": [{"type": "text", "text": "s"}], "tools": [{"name": "f", "input_schema": {}}]},
    ),
    "/tokenize": (
        {"model": "tiny", "prompt": "Hello"},
        {"messages": [USER], "add_special_tokens": False, "return_token_strs": True, "add_generation_prompt": True},
    ),
    "/detokenize": ({"model": "tiny", "tokens": [65, 66]}, {}),
    "/v1/batches": (
        {"input_file_id": "file-0", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        {"metadata": {"a": "b"}, "output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ),
    "/v1/messages/batches": ({"requests": [{"custom_id": "a", "params": MESSAGE}]}, {}),
    "/v1/embeddings": (
        {"model": "tiny", "input": "Hello"},
        {"dimensions": 3, "encoding_format": "base64", "user": "u", "truncate_prompt_tokens": 2},
    ),
    **dict.fromkeys(
        ("/score", "/v1/score"),
        ({"model": "tiny", "text_1": "a", "text_2": ["b", "c"]}, {"truncate_prompt_tokens": 2, "user": "u"}),
    ),
    **dict.fromkeys(
        ("/rerank", "/v1/rerank", "/v2/rerank"),
        ({"model": "tiny", "query": "a", "documents": ["b", "c"]}, {"top_n": 1, "return_documents": False}),
    ),
}
DEEP: Any = [[[[[[[[{"a": [[[[{}]]]]}]]]]]]]]
JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 1e-320, 128, 129, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30),
    *("", "a", "é", "\ud800", "a\udfff", "\x00", "\u2028", "🙂", "a" * 300, "a" * 70_000, "null", "0", "1e5", "NaN"),
    *([], [None], [[]], [{}], ["a"], [1], [65], [1.5], [True], ["\ud800"], [2**40], [-1], ["a", 1], ["", ""], DEEP),
    *({}, {"a": 1}, {"": ""}, {"65": 1}, {"65": "x"}, {"-1": 0}, {"999": 5}, {"\ud800": 1}, {"type": "text"}, USER),
    {"type": "image_url", "image_url": {"url": "data:,"}},
    [{"type": "text", "text": "a"}, {"type": "image", "source": {}}],
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
    {"role": "tool", "content": "x"},
]
NAMES = (
    "messages",
    "prompt",
    "model",
    "role",
    "content",
    "self",
    "",
    "\ud800",
    "__class__",
    "max_tokens",
    "tools",
    "n",
)
RAW = (b"", b" ", b"null", b"[", b"{", b"}", b"NaN", b"-", b"\xff", b'"\\ud800"', b'{"a":1}' * 2, b"1" * 5000)
"""Instead of a body."""


def body_of(random: Random, route: str) -> bytes:
    base, more = BODIES[route]
    body: Any = json.loads(json.dumps(base))
    for name in random.sample(sorted(more), random.choice((0, 0, 1, 2, min(4, len(more)))) if more else 0):
        body[name] = more[name]
    for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
        body = faulty(random, body)
    text = json.dumps(body, ensure_ascii=random.random() < 0.9).encode("utf-8", "surrogatepass")
    if random.random() < 0.05:
        return broken(random, text)
    return text


def faulty(random: Random, body: Any) -> Any:
    """With a fault at a random place."""
    places = list(places_of(body))
    container, key = random.choice(places) if places and random.random() < 0.97 else (None, None)
    if container is None:
        return random.choice(JUNK)
    kind = random.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[random.choice(NAMES)] = random.choice(JUNK)
    elif kind == 2 and isinstance(container, dict):
        container[random.choice(NAMES)] = container.pop(key)
    elif kind == 3:
        container[key] = [container[key]] * random.choice((0, 1, 2, 50))
    else:
        container[key] = random.choice(JUNK)
    return body


def places_of(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """The containers in it and their keys. Of what JUNK holds nothing is changed."""
    if any(value is each for each in JUNK) or depth > 4:
        return
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, each in items:
        yield value, key
        yield from places_of(each, depth + 1)


def broken(random: Random, text: bytes) -> bytes:
    at = random.randrange(len(text) + 1)
    return random.choice((text[:at], text[:at] + bytes([random.randrange(256)]) + text[at:], random.choice(RAW)))


class Response:
    """left: the client did not wait for it."""

    def __init__(self) -> None:
        self.status, self.body, self.left = 0, b"", False

    @property
    def fault(self) -> str | None:
        """What is wrong with the response, if it is that."""
        if self.left:
            return None
        if self.status == 200:
            return "an event is an error" if b'"type":"server_error"' in self.body else None
        if not 400 <= self.status < 500:
            return f"status {self.status}"
        error = json.loads(self.body)["error"]
        return None if isinstance(error["message"], str) and error["message"] else "no message"


async def post(app: Callable[..., Any], route: str, body: bytes, leave_after: float | None = None) -> Response:
    """leave_after: seconds."""
    response = Response()
    gone = asyncio.Event()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            response.status = message["status"]
        else:
            response.body += message.get("body", b"")

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST"}
    scope |= {"path": route, "raw_path": route.encode(), "query_string": b"", "root_path": "", "headers": headers}
    scope |= {"scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {}}
    answer = asyncio.ensure_future(app(scope, receive, send))
    if leave_after is not None:
        done, _ = await asyncio.wait([answer], timeout=leave_after)
        response.left = not done
    if response.left:
        gone.set()
    await asyncio.wait_for(answer, SECONDS)
    gone.set()
    return response


@asynccontextmanager
async def application(folder: Path) -> AsyncIterator[tuple[Any, AsyncLLM]]:
    """The server's, with a tiny model."""
    from tiny_model import save_tiny_model

    settings = ServerSettings(port=0, served_model_name=["tiny"])
    llm = AsyncLLM(save_tiny_model(folder), threads=1, num_kv_blocks=512, max_model_len=128)
    try:
        with open_storage(settings) as storage:
            app = create_app(Service(llm, settings, storage))
            async with app.router.lifespan_context(app):
                yield app, llm
    finally:
        llm.close()


async def fuzz(app: Any, llm: AsyncLLM, *, requests: int, seed: int = 0) -> tuple[Counter[tuple[str, int]], list[str]]:
    """How many responses of each route had each status (0: left), and what was wrong, with the body's number."""
    counts: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []
    numbers = iter(range(requests))
    routes = sorted(BODIES)

    async def send() -> None:
        for number in numbers:
            random = Random(f"{seed}:{number}")
            route = random.choice(routes)
            body = body_of(random, route)
            leave_after = random.random() * 0.01 if random.random() < 0.05 else None
            try:
                response = await post(app, route, body, leave_after)
                fault = response.fault
            except Exception as error:
                counts[route, 500] += 1
                wrong.append(f"{number} {route} {body[:500]!r}: {type(error).__name__}: {error}")
                continue
            counts[route, 0 if response.left else response.status] += 1
            if fault is not None:
                wrong.append(f"{number} {route} {body[:500]!r}: {fault}: {response.body[-500:]!r}")

    await asyncio.gather(*(send() for _ in range(AT_ONCE)))
    deadline = time.monotonic() + SECONDS
    while not llm.session.idle and time.monotonic() < deadline:  # rows of batches
        await asyncio.sleep(0.05)
    if not llm.session.idle or llm.engine.has_unfinished():
        wrong.append("a request is stuck in the engine")
    llm.engine.check_integrity()
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    async def run() -> tuple[Counter[tuple[str, int]], list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            async with application(Path(folder)) as (app, llm):
                return await fuzz(app, llm, requests=asked.requests, seed=asked.seed)

    begin = time.monotonic()
    counts, wrong = asyncio.run(run())
    statuses = sorted({status for _, status in counts})
    print(f"{'':28}" + "".join(f"{status or 'left':>8}" for status in statuses))
    for route in sorted(BODIES):
        print(f"{route:28}" + "".join(f"{counts[route, status]:8}" for status in statuses))
    seconds = time.monotonic() - begin
    print(f"{asked.requests:,} bodies in {seconds:.0f} s; {len(wrong)} wrong")
    print(*wrong[:20], sep="\n")
    if asked.json is not None:
        about = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "seed": asked.seed}
        responses = {route: {str(status or "left"): counts[route, status] for status in statuses} for route in BODIES}
        result = {"bodies": asked.requests, "seconds": round(seconds, 1), "wrong": len(wrong), "responses": responses}
        asked.json.write_text(json.dumps({**about, **result}, indent=2) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
