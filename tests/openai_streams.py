"""Streamed answers put together again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx


def events(text: str) -> list[Any]:
    """The data of server-sent events, after which the stream says that it has ended."""
    *parts, end = text.split("\n\n")
    assert end == ""
    assert all(part.startswith("data: ") for part in parts)
    data = [part.removeprefix("data: ") for part in parts]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


def post(url: str, body: Mapping[str, Any]) -> Any:
    response = httpx.post(url, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def post_streamed(url: str, body: Mapping[str, Any]) -> list[Any]:
    """The chunks."""
    response = httpx.post(url, json={**body, "stream": True}, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events(response.text)


def joined(chunks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The choices that the whole answer would have."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] not in found:
                found[choice["index"]] = empty(choice)
            add(found[choice["index"]], choice)
    for choice in found.values():
        message = choice.get("message", {})
        if message.get("content") is None and "tool_calls" not in message and message:
            message["content"] = ""
    return [found[index] for index in sorted(found)]


def empty(first: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"index": first["index"], "logprobs": None, "finish_reason": None}
    if "delta" not in first:
        return {**choice, "text": ""}
    assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
    return {**choice, "message": {"role": "assistant", "content": None, "refusal": None}}


def add(whole: dict[str, Any], choice: Mapping[str, Any]) -> None:
    assert whole["finish_reason"] is None, "a choice goes on after its end"
    whole["finish_reason"] = choice["finish_reason"]
    if "text" in choice:
        whole["text"] += choice["text"]
    delta = choice.get("delta", {})
    if delta.get("content"):
        whole["message"]["content"] = (whole["message"]["content"] or "") + delta["content"]
    for call in delta.get("tool_calls", ()):
        calls = whole["message"].setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append({**call, "function": dict(call["function"])})
            del calls[-1]["index"]
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    if choice["logprobs"] is not None:
        for name, values in choice["logprobs"].items():
            if isinstance(values, list):
                whole["logprobs"] = whole["logprobs"] or dict.fromkeys(choice["logprobs"])
                whole["logprobs"][name] = [*(whole["logprobs"][name] or ()), *values]
