"""The LoRA adapters that requests name: which are in memory, and whose requests wait for a place there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from hashlib import blake2b

import torch

from pybatch.engine.execution.parallel.followers import LedAdapterSlots
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.scheduling.block_pool import BlockKey
from pybatch.engine.scheduling.sequence import LoadedAdapter, Request
from pybatch.model.checkpoints.adapter import CONFIG, WEIGHTS, Adapter
from pybatch.model.errors import one_line
from pybatch.model.lora.slots import AdapterSlots

PATIENCE = 64  # requests with adapters that may go ahead of the first that waits for another's place


class Adapters:
    """Adapters of one engine. slots: None where it takes none.

    An adapter is loaded for the first of its requests, and stays until another needs its place: then the one that has
    been without a request for longest goes. Any thread may call `find`.
    """

    def __init__(self, slots: AdapterSlots | LedAdapterSlots | None) -> None:
        self._slots = slots
        self._known: dict[int, LoadedAdapter] = {}  # by lora_int_id
        self._lock = threading.Lock()  # over them
        self._placed: list[LoadedAdapter | None] = [None] * (0 if slots is None else slots.count)
        self._waiting: deque[Request] = deque()
        self._num_ahead = 0  # that have gone ahead of the first of these
        self._clock = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def enabled(self) -> bool:
        return self._slots is not None

    def find(self, request: LoRARequest) -> LoadedAdapter:
        """Reads an adapter that is not known yet. Raises ValueError for one that cannot be had, or does not fit."""
        if not isinstance(request, LoRARequest):
            raise ValueError(f"lora_request: expected a LoRARequest, got {type(request).__name__}")
        if self._slots is None:
            raise ValueError("lora_request: expected none, since enable_lora is off")
        with self._lock:
            known = self._known.get(request.lora_int_id)
            if known is not None:
                if known.request != request:
                    raise ValueError(
                        f"lora_request: lora_int_id {request.lora_int_id} is {known.request.lora_name!r} from "
                        f"{known.request.lora_path}; expected another number for {request.lora_name!r}"
                    )
                return known
            try:
                adapter = Adapter.find(request.lora_path)
                self._slots.check(adapter)
                digest = content_digest(adapter, self._slots.dtype)
            except OSError as error:
                raise ValueError(f"lora_request: {request.lora_name}: {one_line(str(error))}") from error
            except ValueError as error:
                raise ValueError(f"lora_request: {request.lora_name}: {error}") from error
            known = LoadedAdapter(request, BlockKey(digest, b""), adapter.directory)
            self._known[request.lora_int_id] = known
            return known

    def admit(self, request: Request) -> bool:
        """Whether the request may be scheduled now; else it comes out of `take` once it may. Raises ValueError if its
        adapter can be read no longer."""
        assert request.adapter is not None
        if self._waiting and (request.adapter.slot is None or self._num_ahead >= PATIENCE):
            self._waiting.append(request)
            return False
        if not self._place(request.adapter):
            self._waiting.append(request)
            return False
        self._num_ahead += bool(self._waiting)
        request.adapter.users.add(request)
        return True

    def take(self) -> Iterator[tuple[Request, str | None]]:
        """Those that wait no longer: each may be scheduled, or there is an error that says why not."""
        while self._waiting:
            request, error = self._waiting[0], None
            assert request.adapter is not None
            try:
                if not self._place(request.adapter):
                    return
                request.adapter.users.add(request)
            except ValueError as fault:
                error = str(fault)
            self._waiting.popleft()
            self._num_ahead = 0
            yield request, error

    def leave(self, request: Request) -> None:
        """The request has ended, wherever it was."""
        if request.adapter is not None:
            request.adapter.users.discard(request)
            self._clock += 1
            request.adapter.used = self._clock
            if request in self._waiting:
                self._waiting.remove(request)

    def _place(self, adapter: LoadedAdapter) -> bool:
        """Loads it if need be; False if all places are in use."""
        if adapter.slot is not None:
            return True
        assert self._slots is not None
        free = [slot for slot, each in enumerate(self._placed) if each is None]
        unused = [each for each in self._placed if each is not None and not each.users]
        if free:
            slot = free[0]
        elif unused:
            oldest = min(unused, key=lambda each: each.used)
            assert oldest.slot is not None
            slot, oldest.slot = oldest.slot, None
        else:
            return False
        self._placed[slot] = None
        try:
            found = Adapter(adapter.directory)
            if content_digest(found, self._slots.dtype) != adapter.root.digest:
                raise ValueError(f"{adapter.directory} has changed since it was first named; expected what it had")
            self._slots.load(slot, found)
        except (OSError, ValueError) as error:
            raise ValueError(f"lora_request: {adapter.request.lora_name}: {one_line(str(error))}") from error
        self._placed[slot], adapter.slot = adapter, slot
        return True


def content_digest(adapter: Adapter, dtype: torch.dtype) -> bytes:
    """16 bytes of a hash of its files, and of the dtype in which it is kept: its blocks' place among prefixes, which
    other engines may find on disk."""
    total = blake2b(str(dtype).encode(), digest_size=16)
    for name in (CONFIG, WEIGHTS):
        total.update((adapter.directory / name).read_bytes())
    return total.digest()
