"""Measurements that are kept in a file of the user's cache folder, each under all that it depends on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

KEPT = 64  # entries of a file

Key = Mapping[str, Any]


def find_kept(path: Path, key: Key) -> Mapping[str, Any] | None:
    """What was kept, None where the file has none of it or cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_bytes())[digest(key)]
        return found if isinstance(found, dict) else None
    return None


def keep(path: Path, key: Key, fields: Mapping[str, Any]) -> None:
    """Adds to the file, in one piece for whoever reads it meanwhile. Raises OSError if it cannot be written."""
    kept: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        kept = dict(json.loads(path.read_bytes()))
    kept.pop(digest(key), None)
    kept[digest(key)] = {"of": key, **fields}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "w") as file:
            json.dump(dict(list(kept.items())[-KEPT:]), file, indent=1, default=str)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def digest(key: Key) -> str:
    return blake2b(json.dumps(key, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
