"""The server's log, on standard error: a line a request, in key=value pairs (logfmt)."""

from __future__ import annotations

import json
import logging
import sys

from pybatch.serve.watched import Watched

POLLED = frozenset({"/health", "/ready", "/metrics", "/stats"})  # asked all the time: lines of level debug

access = logging.getLogger("pybatch.access")


def write_log(level: str) -> None:
    """From now on. level: the lowest that is written, by its name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("pybatch")
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


def log_request(request: Watched) -> None:
    """Neither what was asked or answered is in it, nor a key."""
    level = logging.DEBUG if request.route in POLLED else logging.INFO
    if access.isEnabledFor(level):
        access.log(level, "%s", line(request))


def line(request: Watched) -> str:
    facts = {
        "id": request.id,
        "method": request.method,
        "route": request.route or request.path[:200],
        "status": request.status or 0,
        "seconds": f"{request.seconds:.4f}",
        "key": request.key,
        "gone": True if request.gone else None,
    }
    if request.prompts:
        facts |= {
            "prompt_tokens": request.prompt_tokens,
            "cached_tokens": request.cached_tokens,
            "output_tokens": request.output_tokens,
            "ttft": None if request.ttft is None else f"{request.ttft:.4f}",
            "finish": ",".join(sorted(set(request.reasons))) or None,
        }
    return " ".join(f"{name}={pair_value(value)}" for name, value in facts.items() if value is not None)


def pair_value(value: object) -> str:
    """Quoted where it would not be one word of a line."""
    text = "true" if value is True else str(value)
    return text if text.isascii() and text.isprintable() and not set(text) & set(' "=\\') else json.dumps(text)
