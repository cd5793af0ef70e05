"""Prefixes on a disk below the KV pool: read as requests are admitted, written by a thread of its own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import BoundedSemaphore

from pybatch.engine.disk.block_file import num_bytes, read_block, write_block
from pybatch.engine.disk.size_limit import SizeLimit, file_name
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.scheduling.block_pool import BlockKey, BlockPool
from pybatch.machine.own_files import BadFileError

logger = logging.getLogger(__name__)

_MOST_QUEUED = 64 << 20  # bytes that wait to be written; what comes on top is written when it is next found
_PERIOD = 60.0  # seconds in which a block is looked for once, and after which what has failed is tried again


class PrefixFiles:
    """A file for each full block (see block_file), in a folder of the engines whose blocks are the same.

    Written is what several requests begin with: a block that one finds in the pool, or that is pinned. A file that
    cannot be read, is damaged or another user's is one that is not there; a disk that cannot be written to is left
    alone for a minute. There is one warning of either.

    root: of the folders of all such engines. name: of the folder, as fingerprint() has it. max_bytes: of all files
    below root. seconds_per_token: what computing takes, 0 if unknown; nothing is read while reading has taken longer.
    before_load, an attribute: called first, since blocks may be free whose contents are still to be moved elsewhere.

    Raises OSError if there can be no such folder.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        kv_cache: KvCache,
        *,
        max_bytes: int,
        block_size: int,
        seconds_per_token: Callable[[], float],
    ) -> None:
        self.folder = root / name
        self._make_folder()
        self.before_load: Callable[[], None] = lambda: None
        self.num_read = self.num_written = 0  # blocks
        self._kv_cache = kv_cache
        self._block_size = block_size
        self._seconds_per_token = seconds_per_token
        self._seconds = 0.0  # that reading has taken
        self._limit = SizeLimit(root, max_bytes)
        self._wanted: dict[BlockKey, int] = {}  # with the time of its use
        self._seen: set[bytes] = set()  # digests that have been looked for since the period began
        self._period_end = 0.0
        self._resume_at = 0.0
        self._warned: set[str] = set()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pybatch-prefix-writer")  # the interpreter waits for it
        self._places = BoundedSemaphore(max(1, _MOST_QUEUED // kv_cache.pool.shape[1]))

    def count(self, keys: Iterable[BlockKey]) -> int:
        return sum(1 for _ in takewhile(self._is_there, keys)) if self._pays() else 0

    def load(self, keys: Iterable[BlockKey], blocks: Iterable[int]) -> int:
        self.before_load()
        begin = time.perf_counter()
        count = 0
        for key, block in zip(keys, blocks, strict=False):
            if not self._kv_cache.fill(block, partial(self._read, key)):
                break
            count += 1
        if count:
            self._seconds += time.perf_counter() - begin
            self.num_read += count
        return count

    def want(self, keys: Iterable[BlockKey]) -> None:
        now = time.monotonic()
        if now >= self._period_end:
            self._seen.clear()
            self._period_end = now + _PERIOD
        used = time.time_ns()
        for depth, key in enumerate(keys):
            if key.digest not in self._seen:
                self._seen.add(key.digest)
                self._wanted[key] = used - depth  # so that ends are deleted before what they follow

    def store(self, pool: BlockPool) -> None:
        """Has what is wanted written, if it is in the pool; what is there already counts as used. To be called when a
        step has been computed."""
        wanted, self._wanted = self._wanted, {}
        for key, used in wanted.items():
            block = pool.find(key)
            if block is None or self._touch(key, used):
                continue
            if not self._places.acquire(blocking=False):
                self._seen.discard(key.digest)
                continue
            try:
                self._writer.submit(self._write, key, self._kv_cache.block_bytes(block), used)
            except RuntimeError:  # the interpreter is ending
                self._places.release()

    def wait(self) -> None:
        """Until all is written."""
        self._writer.submit(lambda: None).result()

    def _pays(self) -> bool:
        computing = self._seconds_per_token() * self._block_size
        return not (self.num_read and computing) or self._seconds / self.num_read < computing

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def _path(self, key: BlockKey) -> Path:
        return self.folder / file_name(key.digest)

    def _is_there(self, key: BlockKey) -> bool:
        return os.path.lexists(self._path(key))

    def _read(self, key: BlockKey, into: memoryview) -> bool:
        path = self._path(key)
        try:
            return read_block(path, key, into)
        except BadFileError as error:
            self._warn("read", f"{path} is not used, nor will others like it be: {error}")
            with suppress(OSError):
                os.unlink(path)  # so that it is written again
        except OSError as error:
            self._warn("read", f"files are not used that cannot be read: {error}")
        return False

    def _touch(self, key: BlockKey, used: int) -> bool:
        try:
            os.utime(self._path(key), ns=(used, used))
        except OSError:
            return False
        return True

    def _write(self, key: BlockKey, block: bytes, used: int) -> None:
        try:
            if time.monotonic() >= self._resume_at and self._limit.make_room(num_bytes(key, block)):
                self._make_folder()  # which may have been deleted, so that prompts are forgotten
                write_block(self._path(key), key, block, used=used)
                self.num_written += 1
        except OSError as error:
            self._resume_at = time.monotonic() + _PERIOD
            self._warn("write", f"prefixes are not written: {error}")
        finally:
            self._places.release()

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("prefix_cache_dir: %s", text)
