"""A rank from 1 on, as Followers starts it: `python -m` this module. It loads its share of the model, and does what it
is told until the leader is gone."""

from __future__ import annotations

import logging
import pickle
import signal
import sys
from multiprocessing.connection import Client
from typing import Any

import torch

from pybatch.engine.execution.kv_cache import KvCache, kv_layout
from pybatch.engine.execution.state_cache import StateCache, state_layout
from pybatch.machine.ranks import RankError, Ranks
from pybatch.machine.threads import set_threads
from pybatch.model.batch import ForwardBatch, LayerCache, LayerState
from pybatch.model.decoder import Decoder
from pybatch.model.key_shifts import key_shifts
from pybatch.model.loader import load_model

logger = logging.getLogger(__name__)


def main() -> int:
    from torch._C._distributed_c10d import TCPStore

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the leader decides when to stop
    address, port, key, store_port, rank, size, threads, load = pickle.load(sys.stdin.buffer)
    set_threads(threads)
    device = torch.device(load["device"])
    with torch.accelerator.device_index(device.index), Client((address, port), authkey=key) as connection:
        ranks = Ranks(TCPStore(address, store_port, size, False), rank, size, device)
        try:
            decoder = load_model(**load, skip_tokenizer=True, progress=False, ranks=ranks).decoder
            follow(decoder, connection)
        except (EOFError, RankError, ConnectionError):
            logger.info("rank %d: the leader is gone", rank)
    return 0


def follow(decoder: Decoder, connection: Any) -> None:
    cache: KvCache | None = None
    caches: list[LayerCache | LayerState] = []
    while True:
        what, arguments = pickle.loads(connection.recv_bytes())
        if what == "forward":
            tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arguments[0].items()}
            batch = ForwardBatch(**tensors)
            decoder.forward(batch.to(decoder.device), caches)
        elif what == "make_caches":
            config, num_blocks, num_states = arguments
            layout = kv_layout(decoder, config)
            cache = KvCache(layout, num_blocks, decoder.device, key_shifts(decoder) if layout.quantised else ())
            states = state_layout(decoder)
            of_states = [] if states is None else StateCache(states, num_states, decoder.device).layers
            caches = decoder.caches(cache.layers, of_states)
        else:
            getattr(cache, what)(*arguments)


if __name__ == "__main__":
    sys.exit(main())
