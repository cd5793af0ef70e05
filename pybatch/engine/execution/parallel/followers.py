"""The processes of the ranks from 1 on, as rank 0's engine sees them."""

from __future__ import annotations

import os
import pickle
import secrets
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection, Listener
from typing import Any

from pybatch.engine.execution.kv_cache import KvCache
from pybatch.machine.device import find_device
from pybatch.machine.ranks import RankError, Ranks
from pybatch.model.batch import ForwardBatch

START = 120.0  # seconds in which a follower has to be there
PATIENCE = 5.0  # seconds until one that does not end is killed
HOST = "127.0.0.1"


class Followers:
    """Starts the other ranks on this machine, and tells them what to do; they end with this process.

    load: the arguments of load_model. threads: of each rank. Raises RankError if one does not start.
    """

    def __init__(self, size: int, load: Mapping[str, Any], threads: int) -> None:
        from torch._C._distributed_c10d import TCPStore

        device = find_device(load["device"])
        self.beside = size if device.type == "cpu" else 1  # ranks that share this one's memory
        store = TCPStore(HOST, 0, size, True, wait_for_workers=False)
        key = secrets.token_bytes(32)
        command = [sys.executable, "-m", "pybatch.engine.execution.parallel.follower"]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        with Listener((HOST, 0), authkey=key) as listener:
            address, port = listener.address
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            for rank in range(1, size):
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, env=environment, start_new_session=True, close_fds=True
                )
                self._processes.append(process)
                assert process.stdin is not None
                with process.stdin as start:
                    own = {**load, "device": "cpu" if device.type == "cpu" else f"cuda:{rank}"}
                    pickle.dump((address, port, key, store.port, rank, size, threads, own), start)
                self._connections.append(self._accept(listener, process, rank))
        self.ranks = Ranks(store, 0, size, device)
        self.ranks.why = partial(_why, self._processes)
        weakref.finalize(self, _end, self._connections, self._processes)

    def tell(self, what: str, *arguments: Any) -> None:
        message = pickle.dumps((what, arguments))
        try:
            for connection in self._connections:
                connection.send_bytes(message)
        except OSError as error:
            raise RankError(self.ranks.end(str(error))) from error

    def forward(self, batch: ForwardBatch) -> None:
        """Has them run a step beside this process's own."""
        self.tell("forward", {name: tensor.cpu().numpy() for name, tensor in batch.tensors().items()})

    def _accept(self, listener: Listener, process: subprocess.Popen[bytes], rank: int) -> Connection:
        waits = listener._listener._socket  # type: ignore[attr-defined]
        waits.settimeout(0.5)
        deadline = time.monotonic() + START
        while time.monotonic() < deadline and process.poll() is None:
            try:
                return listener.accept()
            except TimeoutError:
                continue
        _end(self._connections, self._processes)
        ended = "did not start in time" if process.poll() is None else f"ended with status {process.returncode}"
        raise RankError(f"tensor_parallel_size: rank {rank} {ended}")


def _end(connections: list[Connection], processes: list[subprocess.Popen[bytes]]) -> None:
    """They end by themselves when nobody tells them anything any more."""
    for connection in connections:
        connection.close()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _why(processes: list[subprocess.Popen[bytes]]) -> str:
    """Which rank has ended, and how, once the system knows."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for rank, process in enumerate(processes, 1):
            status = process.poll()
            if status is not None:
                how = f"signal {-status}" if status < 0 else f"status {status}"
                return f"rank {rank}, process {process.pid}, has ended with {how}"
        time.sleep(0.02)
    return ""


class LedKvCache(KvCache):
    """A rank's pool, whose blocks the followers move as this one does."""

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
