"""What the processes of one machine exchange, by sockets between each two of them.

Who waits looks again and again for a while before it lets the system wake it: that takes longer than most exchanges, on
virtual machines some hundred microseconds.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pybatch.machine.readiness import wait_ready

JOINING = 150.0  # seconds in which all have to be there: more than all may take to start
PATIENCE = 600.0  # seconds in which the slowest process has to come to where the others wait
SPIN = 2e-3  # seconds of looking again


class Sockets:
    """Of process `number` among `size`, numbered from 0, all of which make theirs at the same time.

    store: a torch.distributed store that all have open. Raises OSError or RuntimeError where one does not come.
    """

    def __init__(self, store: Any, number: int, size: int) -> None:
        self._number = number
        self._peers: dict[int, socket.socket] = {}
        with tempfile.TemporaryDirectory(prefix="pybatch-") as folder, socket.socket(socket.AF_UNIX) as listener:
            path = os.path.join(folder, "socket")
            listener.settimeout(JOINING)
            listener.bind(path)
            listener.listen(size)
            store.set(f"socket {number}", path)
            store.wait([f"socket {other}" for other in range(number)], timedelta(seconds=JOINING))
            for other in range(number):
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(store.get(f"socket {other}").decode())
                peer.send(bytes([number]))
                self._peers[other] = peer
            while len(self._peers) < size - 1:
                peer, _ = listener.accept()
                self._peers[peer.recv(1)[0]] = peer
        for peer in self._peers.values():
            peer.setblocking(False)

    def gather(self, parts: list[memoryview]) -> None:
        """Sends the own one of these bytes, of which all processes have the sizes, and fills in those of the others.
        Raises OSError where another has ended, or does not come."""
        sending = dict.fromkeys(self._peers, parts[self._number])
        receiving = {other: parts[other] for other in self._peers}
        moved = time.monotonic()
        while sending or receiving:
            sent, received = self._send(sending), self._receive(receiving)
            if sent or received:
                moved = time.monotonic()
            elif time.monotonic() - moved < SPIN:
                os.sched_yield()
            else:
                self._wait(sending, receiving)

    def _send(self, rest: dict[int, memoryview]) -> bool:
        """As much as can be at once; whether that is something."""
        before = sum(map(len, rest.values()))
        for other, part in list(rest.items()):
            try:
                rest[other] = part[self._peers[other].send(part) :]
            except BlockingIOError:
                continue
            except ConnectionError as error:
                raise _gone(other) from error
            if not rest[other]:
                del rest[other]
        return sum(map(len, rest.values())) < before

    def _receive(self, rest: dict[int, memoryview]) -> bool:
        before = sum(map(len, rest.values()))
        for other, part in list(rest.items()):
            try:
                count = self._peers[other].recv_into(part)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                raise _gone(other) from error
            if not count:
                raise _gone(other)
            rest[other] = part[count:]
            if not rest[other]:
                del rest[other]
        return sum(map(len, rest.values())) < before

    def _wait(self, sending: Mapping[int, Any], receiving: Mapping[int, Any]) -> None:
        """Until something can be sent or received."""
        peers = self._peers
        if not wait_ready([peers[other] for other in receiving], [peers[other] for other in sending], PATIENCE):
            raise TimeoutError(f"processes {sorted({*sending, *receiving})} do not answer")


def _gone(number: int) -> ConnectionError:
    return ConnectionError(f"process {number} has ended")
