"""API keys: where they come from, and finding the one that a request has."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pybatch.engine.user_weights import is_weight
from pybatch.serve.limits import Limits

logger = logging.getLogger(__name__)

VARIABLE = "PYBATCH_API_KEY"
PARSERS: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
LIMITS = tuple(Limits.__dataclass_fields__)
FIELDS = ("name", "key", *LIMITS, "weight")


@dataclass(frozen=True)
class Key:
    """name: what logs and metrics may show. digest: the key's SHA-256; the key itself is not kept. weight: its share of
    the engine beside others, in proportion."""

    name: str
    digest: bytes
    limits: Limits
    weight: float = 1.0


class Keys:
    """The keys that the server takes; without any it is open to all."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        for field in ("name", "digest"):
            seen = [getattr(key, field) for key in keys]
            twice = next((key.name for key in keys if seen.count(getattr(key, field)) > 1), None)
            if twice is not None:
                raise ValueError(f"API keys: expected each {field.replace('digest', 'key')} once; see {twice!r}")
        self.keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self.keys)

    @property
    def weights(self) -> dict[str, float]:
        """By name, those that differ from the others'."""
        return {key.name: key.weight for key in self.keys if key.weight != 1}

    def find(self, offered: Iterable[bytes]) -> Key | None:
        """The key that one of the offered ones is. Takes the same time whichever it is."""
        found = None
        for each in offered:
            digest = hashlib.sha256(each).digest()
            for key in self.keys:
                if hmac.compare_digest(digest, key.digest):
                    found = key
        return found


def load_keys(given: Sequence[str], file: str | Path | None, environ: Mapping[str, str], limits: Limits) -> Keys:
    """Of --api-key, the file and the environment. limits: of keys that have none of their own.

    Raises ValueError or OSError; no message shows a key.
    """
    keys = [make_key("--api-key", {"name": f"key-{number}", "key": key}, limits) for number, key in enumerate(given, 1)]
    keys += from_lines(VARIABLE, environ.get(VARIABLE, ""), limits)
    if file is not None:
        found = from_file(Path(file), limits)
        if not found:
            raise ValueError(f"{file}: expected API keys, got none")
        keys += found
    return Keys(keys)


def from_file(file: Path, limits: Limits) -> list[Key]:
    """Of .toml or .json, a list `keys` of tables; of any other file, its lines."""
    if stat.S_IMODE(file.stat().st_mode) & stat.S_IROTH:
        logger.warning("%s: every user of this machine can read the API keys in it: chmod o-r", file)
    try:
        text = file.read_text("utf-8")
        entries = PARSERS.get(file.suffix, str)(text)
    except ValueError as error:
        # Without the error itself: a parser's message or the object that it holds may show the text.
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise ValueError(f"{file}: expected {file.suffix.lstrip('.') or 'text'} in UTF-8 ({where})") from None
    if isinstance(entries, str):
        return from_lines(str(file), entries, limits)
    if isinstance(entries, Mapping) and entries.keys() == {"keys"}:
        entries = entries["keys"]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"{file}: expected `keys`, a list of tables with {', '.join(FIELDS)}")
    return [make_key(f"{file}: keys[{number}]", entry, limits) for number, entry in enumerate(entries)]


def from_lines(where: str, text: str, limits: Limits) -> list[Key]:
    """A key a line, and its name after a blank if it has one; lines that begin with # are comments."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key, _, name = line.strip().partition(" ")
        if key and not key.startswith("#"):
            name = name.strip() or f"{Path(where).stem}-{number}"
            keys.append(make_key(f"{where}: line {number}", {"name": name, "key": key}, limits))
    return keys


def make_key(where: str, entry: Mapping[str, Any], limits: Limits) -> Key:
    if not entry.keys() <= set(FIELDS):  # which one is not told: it may be a key
        raise ValueError(f"{where}: expected no other fields than {', '.join(FIELDS)}")
    name, key = entry.get("name"), entry.get("key")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: expected a name")
    # What a header can carry as it is.
    if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where}: expected a key of printable ASCII characters without blanks")
    weight = entry.get("weight", 1.0)
    if not is_weight(weight):
        raise ValueError(f"{where}: weight: expected a number above 0")
    own = {field: entry[field] for field in LIMITS if field in entry}
    try:
        return Key(name, hashlib.sha256(key.encode()).digest(), Limits(**{**vars(limits), **own}), float(weight))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
