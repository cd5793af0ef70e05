"""A process beside the leader: it loads its share of the model, and does what it is told until the leader is gone."""

from __future__ import annotations

import logging
import pickle
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from typing import Any

import torch

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.caches import make_caches
from pybatch.engine.execution.kv_cache import KvCache, capacity, kv_layout
from pybatch.engine.execution.state_cache import num_slots, state_layout
from pybatch.machine.ranks import Place, RankError, World
from pybatch.machine.threads import set_threads
from pybatch.model.batch import AnyCache, ForwardBatch
from pybatch.model.decoder import Decoder
from pybatch.model.errors import ModelError
from pybatch.model.loader import load_model
from pybatch.model.lora.slots import AdapterSlots

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """What a follower has to know. leader, port, store_port: where the leader and its store listen. sharing: how many
    processes share its memory, with itself. load: the arguments of load_model."""

    place: Place
    leader: str
    port: int
    store_port: int
    key: bytes
    threads: int
    sharing: int
    load: dict[str, Any]


def run(start: Start, host: str) -> None:
    """Returns when the leader is gone, or others are, of which one line tells. host: this machine's address for the
    others."""
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed import DistNetworkError

    place = start.place
    set_threads(start.threads)
    device = torch.device(start.load["device"])
    with (
        torch.accelerator.device_index(device.index),
        Client((start.leader, start.port), authkey=start.key) as connection,
    ):
        try:
            store = TCPStore(start.leader, start.store_port, place.ranks * place.stages, False)
            ranks, stages = place.join(World(place.ranks * place.stages), store, device, host, start.sharing)
            loaded = load_model(**start.load, skip_tokenizer=True, progress=False, ranks=ranks, stages=stages)
            follow(loaded.decoder, loaded.adapters, connection, start.sharing)
        except (EOFError, ConnectionError, DistNetworkError, RankError, TimeoutError) as error:
            if _is_closed(connection):
                logger.info("rank %d: the leader is gone", place.number)
            else:
                logger.error("rank %d: %s", place.number, str(error).partition("\n")[0] or "another rank has ended")


def _is_closed(connection: Connection) -> bool:
    """Whether the leader has ended, or ends at the same time."""
    try:
        while connection.poll(0.1):
            connection.recv_bytes()
    except (EOFError, OSError):
        return True
    return False


def follow(decoder: Decoder, adapters: AdapterSlots | None, connection: Connection, sharing: int) -> None:
    cache: KvCache | None = None
    caches: list[AnyCache] = []
    while True:
        what, arguments = pickle.loads(connection.recv_bytes())
        if what == "forward":
            tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arguments[0].items()}
            batch = ForwardBatch(**tensors)
            decoder.forward(batch.to(decoder.device), caches)
        elif what == "capacity":
            connection.send(_capacity(decoder, arguments[0], sharing))
        elif what == "make_caches":
            config, num_blocks, num_states = arguments
            cache, caches = make_caches(decoder, config, num_blocks, num_states)
        elif what in ("others", "load"):
            connection.send(_of_adapters(adapters, what, arguments))
        else:
            getattr(cache, what)(*arguments)


def _capacity(decoder: Decoder, config: EngineConfig, sharing: int) -> tuple[int, int] | ValueError:
    """How many KV blocks and recurrent states it has room for."""
    try:
        states = state_layout(decoder)
        slots = 0 if states is None else num_slots(states, config, decoder.device, sharing)
        reserved = 0 if states is None else slots * states.slot_bytes * sharing
        block_bytes = kv_layout(decoder, config).block_bytes * sharing
        return capacity(decoder, config, block_bytes, reserved=reserved)[1], slots
    except ValueError as error:
        return error


def _of_adapters(adapters: AdapterSlots | None, what: str, arguments: tuple[Any, ...]) -> Any:
    """What one of AdapterSlots' methods gives, or its error."""
    try:
        return getattr(adapters, what)(*arguments)
    except ValueError as error:
        return error


def main() -> int:
    """As `python -m` this module, with a Start on its standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides when to stop
    start: Start = pickle.load(sys.stdin.buffer)
    try:
        run(start, start.leader)
    except (ModelError, MemoryError) as error:  # which the leader may not meet, on another machine
        logger.error("rank %d: %s", start.place.number, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
