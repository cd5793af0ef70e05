"""From arguments to a model that answers: loaded, and with the prefixes that it keeps from the start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Message, Prompt, is_token_ids
from pybatch.api.pinned_prefix import pin_prefix
from pybatch.api.session import Session
from pybatch.machine.folders import make_folder, of_home

Prefix = Prompt | Sequence[Message]


def open_session(arguments: EngineArgs) -> Session:
    """Raises ValueError for what the arguments ask in vain, OSError for a file that cannot be read, and what loading a
    model raises."""
    if arguments.prefix_cache_dir is not None:
        make_folder("prefix_cache_dir", Path(arguments.prefix_cache_dir), mode=0o700)
    path = arguments.pinned_prefixes
    prefixes = [] if path is None else list(read_prefixes(of_home(path)))
    session = Session.open(arguments)
    for place, prefix in prefixes:
        try:
            pin_prefix(session, prefix)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"pinned_prefixes: {place}: {error}") from error
    return session


def read_prefixes(path: Path) -> Iterator[tuple[str, Prefix]]:
    """The prefixes of a file, each with its place. Raises ValueError for one that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"pinned_prefixes: {path}: expected text in UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, read_prefix(place, line)


def read_prefix(place: str, line: str) -> Prefix:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"pinned_prefixes: {place}: expected a JSON object: {error}") from None
    match fields:
        case {"messages": [dict(), *_] as messages}:
            return list[Message](messages)
        case {"prompt": str(prompt)} if prompt:
            return prompt
        case {"prompt_token_ids": [_, *_] as ids} if is_token_ids(ids):
            return {"prompt_token_ids": ids}
    raise ValueError(
        f"pinned_prefixes: {place}: expected an object with 'messages', a 'prompt' or 'prompt_token_ids', "
        f"got {line.strip():.80}"
    )
