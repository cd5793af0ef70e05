"""Followers on the machines of a Ray cluster."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from pybatch.engine.execution.parallel.follower import Start
from pybatch.engine.execution.parallel.followers import End
from pybatch.machine.ray_cluster import Slot, connected, find_slots

PATIENCE = 5.0  # seconds until one that does not end is killed


class RayCluster:
    """The machines of a cluster that this one is part of ("auto": RAY_ADDRESS, or the one that runs here).

    Processes are dealt out in turn, one for each GPU; where there are none, to each machine as many as come to it, and
    its processors are shared by them. The first is this one, on this machine. Raises ClusterError.
    """

    def __init__(self, size: int, threads: int | None, device: torch.device) -> None:
        self._connection = ExitStack()
        self._connection.enter_context(connected("auto"))
        import ray

        self.address = ray.util.get_node_ip_address()
        here = ray.get_runtime_context().get_node_id()
        slots = sorted(find_slots(use_gpus=device.type == "cuda"), key=lambda slot: slot.node != here)
        self._size, self._threads, self._slots = size, threads, slots

    def _slot(self, number: int) -> Slot:
        return self._slots[number % len(self._slots)]

    def sharing(self, number: int) -> int:
        return sum(self._slot(other) == self._slot(number) for other in range(self._size))

    def threads(self, number: int) -> int:
        return self._threads or max(1, self._slot(number).cpus // self.sharing(number))

    def start(self, start: Start) -> RayProcess:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        slot = self._slot(start.place.number)
        where = NodeAffinitySchedulingStrategy(slot.node, soft=False)
        kind = ray.remote(num_cpus=0, num_gpus=slot.gpus, max_restarts=0, scheduling_strategy=where)(RankActor)
        device = "cuda:0" if slot.gpus else "cpu"  # Ray shows it its own alone
        return RayProcess(kind.remote(), replace(start, load={**start.load, "device": device}), slot.host)

    def close(self) -> None:
        self._connection.close()


class RankActor:
    def run(self, start: Start) -> None:
        import ray

        from pybatch.engine.execution.parallel.follower import run

        run(start, ray.util.get_node_ip_address())


class RayProcess:
    def __init__(self, actor: Any, start: Start, host: str) -> None:
        self._actor, self._host = actor, host
        self._run = actor.run.remote(start)

    def ended(self) -> End | None:
        import ray

        if not ray.wait([self._run], timeout=0)[0]:
            return None
        try:
            ray.get(self._run)
        except Exception as error:
            return End(True, f"on {self._host}, has ended: {' '.join(str(error).split())[-300:]}")
        return End(False, f"on {self._host}, has ended")

    def end(self) -> None:
        import ray

        if ray.is_initialized():
            ray.wait([self._run], timeout=PATIENCE)
            ray.kill(self._actor)
