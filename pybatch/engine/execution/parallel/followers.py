"""The processes that hold a model together with the engine's own, as the engine sees them."""

from __future__ import annotations

import pickle
import secrets
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection, Listener
from typing import Any, NamedTuple, Protocol, TypeVar

from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.parallel.follower import Start
from pybatch.machine.device import find_device
from pybatch.machine.ranks import Place, RankError, Ranks, Stages, World
from pybatch.model.batch import ForwardBatch
from pybatch.model.checkpoints.adapter import Adapter
from pybatch.model.lora.slots import AdapterSlots

T = TypeVar("T")
START = 120.0  # seconds in which all followers have to be there


class End(NamedTuple):
    """How a follower has ended."""

    failed: bool  # else it has ended since others have
    told: str


class Process(Protocol):
    """A follower that has been started."""

    def ended(self) -> End | None: ...  # None: it has not

    def end(self) -> None: ...  # waits a little for its end, and ends it


class Host(Protocol):
    """Where followers are started, each in turn: this machine (local.py), or those of a Ray cluster (on_ray.py)."""

    address: str  # of this machine, for the others

    def threads(self, number: int) -> int: ...  # of a process, from 0, which is the leader

    def sharing(self, number: int) -> int: ...  # how many processes share its memory, with itself

    def start(self, start: Start) -> Process: ...

    def close(self) -> None: ...  # when all have ended


class Followers:
    """Starts the others, and tells them what to do; they end with this process.

    ranks: that share each layer. stages: that have the layers one behind the other. load: the arguments of load_model.
    Raises RankError if one does not start.
    """

    def __init__(self, ranks: int, stages: int, load: Mapping[str, Any], host: Host) -> None:
        from torch._C._distributed_c10d import TCPStore

        device, size = find_device(load["device"]), ranks * stages
        self.world, self.sharing = World(size), host.sharing(0)
        self._store = store = TCPStore(host.address, 0, size, True, wait_for_workers=False)  # the last may read it late
        key = secrets.token_bytes(32)
        self._processes: list[Process] = []
        self._connections: list[Connection] = []
        self.world.why = partial(_why, self._processes)
        with Listener((host.address, 0), authkey=key) as listener:
            address, port = listener.address
            for number in range(1, size):
                start = Start(
                    Place(number, ranks, stages), address, port, store.port, key, host.threads(number),
                    host.sharing(number), dict(load),
                )  # fmt: skip
                self._processes.append(host.start(start))
            self._close = weakref.finalize(self, _end, self._connections, self._processes, host)
            self._accept_all(listener)
        self.ranks: Ranks | None
        self.stages: Stages | None
        place = Place(0, ranks, stages)
        try:
            self.ranks, self.stages = place.join(self.world, store, device, host.address, self.sharing)
        except (OSError, RuntimeError) as error:
            told = self.world.end(str(error))
            self._close()
            raise RankError(told) from error

    def tell(self, what: str, *arguments: Any) -> None:
        message = pickle.dumps((what, arguments))
        for connection in self._connections:
            self._do(partial(connection.send_bytes, message))

    def ask(self, what: str, *arguments: Any) -> list[Any]:
        """What each answers. Raises ValueError with the words of one that refuses."""
        self.tell(what, *arguments)
        answers = [self._do(connection.recv) for connection in self._connections]
        for answer in answers:
            if isinstance(answer, ValueError):
                raise answer
        return answers

    def forward(self, batch: ForwardBatch) -> None:
        """Has them run a step beside this process's own."""
        self.tell("forward", {name: tensor.cpu().numpy() for name, tensor in batch.tensors().items()})

    def _do(self, exchange: Callable[[], T]) -> T:
        try:
            return exchange()
        except (OSError, EOFError) as error:
            raise RankError(self.world.end(str(error))) from error

    def _accept_all(self, listener: Listener) -> None:
        waits = listener._listener._socket  # type: ignore[attr-defined]
        waits.settimeout(0.5)
        deadline = time.monotonic() + START
        while len(self._connections) < len(self._processes):
            try:
                self._connections.append(listener.accept())
            except TimeoutError:
                told = _ended(self._processes) or ("they did not start in time" if time.monotonic() > deadline else "")
                if told:
                    self._close()
                    raise RankError(f"the {self.world.size} ranks cannot work together: {told}") from None


def _end(connections: list[Connection], processes: list[Process], host: Host) -> None:
    """They end by themselves when nobody tells them anything any more."""
    for connection in connections:
        connection.close()
    for process in processes:
        process.end()
    host.close()


def _ended(processes: list[Process]) -> str:
    """One that has ended, rather one that has failed than one that has ended since others have."""
    ends = [(end, number) for number, process in enumerate(processes, 1) if (end := process.ended()) is not None]
    if not ends:
        return ""
    end, number = min(ends, key=lambda each: not each[0].failed)
    return f"rank {number}, {end.told}"


def _why(processes: list[Process]) -> str:
    """Which rank has ended, and how, once the system knows."""
    deadline = time.monotonic() + 2
    while not (told := _ended(processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return told


class LedKvCache(KvCache):
    """The leader's pool, whose blocks the followers move as it does."""

    def __init__(self, followers: Followers, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._followers = followers

    def make_host_pool(self, size: int) -> int:
        self._followers.tell("make_host_pool", size)
        return super().make_host_pool(size)

    def swap_out(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            self._followers.tell("swap_out", pairs)
        super().swap_out(pairs)

    def swap_in(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            self._followers.tell("swap_in", pairs)
        super().swap_in(pairs)

    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        if pairs:
            self._followers.tell("copy_blocks", pairs)
        super().copy_blocks(pairs)


class LedAdapterSlots:
    """The leader's places for adapters, in which the followers put their parts of what it does."""

    def __init__(self, followers: Followers, slots: AdapterSlots) -> None:
        self._followers, self._slots = followers, slots
        self.count, self.dtype = slots.count, slots.dtype

    def check(self, adapter: Adapter) -> None:
        """Raises ValueError for one that does not fit."""
        others = set(self._slots.others(adapter)).intersection(*self._followers.ask("others", adapter))
        self._slots.expect_no_others(adapter, sorted(others))

    def load(self, slot: int, adapter: Adapter) -> None:
        self._followers.ask("load", slot, adapter)
        self._slots.load(slot, adapter)
