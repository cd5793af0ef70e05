"""Processes that hold a model together: each has a share of the weights and of the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from pybatch.machine.sockets import Sockets

TIMEOUT = timedelta(minutes=10)  # in which the slowest of them has to come to where the others wait


class RankError(RuntimeError):
    """Another rank has ended or does not answer: nothing can be computed any more."""


class World:
    """All ranks. why: what is known of an end, for the error."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.why: Callable[[], str] = lambda: ""
        self._broken = ""

    def run(self, exchange: Callable[[], Any]) -> None:
        """Raises RankError."""
        if self._broken:
            raise RankError(self._broken)
        try:
            exchange()
        except (RuntimeError, OSError) as error:
            raise RankError(self.end(str(error))) from error

    def end(self, reason: str) -> str:
        """Refuses what is asked from now on, and returns in which words: the ranks are no longer in step."""
        if not self._broken:
            told = self.why() or reason.partition("\n")[0] or "one has ended"
            self._broken = f"the {self.size} ranks no longer work together: {told}"
        return self._broken


class Ranks:
    """This process among `size` that share each layer, numbered from 0."""

    def __init__(self, world: World, rank: int, size: int, group: Any) -> None:
        self.rank, self.size = rank, size
        self._world, self._group = world, group

    def gather(self, part: Tensor) -> Tensor:
        """[rows, width] of each rank as [rows, size * width], rank 0's first. Raises RankError."""
        rows, width = part.shape
        parts = part.new_empty(self.size, rows, width)
        parts[self.rank] = part
        if part.numel():
            self._world.run(lambda: self._gather(parts.view(torch.uint8)))
        return parts.transpose(0, 1).reshape(rows, self.size * width)

    def _gather(self, parts: Tensor) -> None:
        self._group.allgather([list(parts)], [parts[self.rank]]).wait()


class LocalRanks(Ranks):
    """All on this machine's processors."""

    def __init__(self, world: World, rank: int, size: int, sockets: Sockets) -> None:
        super().__init__(world, rank, size, None)
        self._sockets = sockets

    def _gather(self, parts: Tensor) -> None:
        self._sockets.gather([memoryview(part.view(-1).numpy()) for part in parts])


class Stages:
    """This process among `count` that have the layers one behind the other, numbered from 0, which has the first."""

    def __init__(self, world: World, stage: int, count: int, group: Any) -> None:
        self.stage, self.count = stage, count
        self._world, self._group = world, group

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.count - 1

    def send(self, rows: Tensor) -> None:
        """To the stage behind. Raises RankError."""
        self._world.run(lambda: self._group.send([rows.view(torch.uint8)], self.stage + 1, 0).wait())

    def receive(self, out: Tensor) -> None:
        """From the stage before. Raises RankError."""
        self._world.run(lambda: self._group.recv([out.view(torch.uint8)], self.stage - 1, 0).wait())


@dataclass(frozen=True, slots=True)
class Place:
    """A process's places in a world of stages of ranks: rank 0 of the last stage leads, as it has the logits."""

    number: int
    ranks: int
    stages: int

    @property
    def rank(self) -> int:
        return self.number % self.ranks

    @property
    def stage(self) -> int:
        return self.stages - 1 - self.number // self.ranks

    def join(
        self, world: World, store: Any, device: torch.device, host: str, sharing: int
    ) -> tuple[Ranks | None, Stages | None]:
        """Waits until all are there. gloo carries what they exchange, on GPUs NCCL; ranks of one machine without GPUs
        have sockets.

        store: a torch.distributed store that all have open. host: this machine's name or address for the others.
        sharing: how many processes share its memory.
        """
        from torch._C._distributed_c10d import PrefixStore

        ranks: Ranks | None = None
        stages = None
        if self.ranks > 1:
            inner = PrefixStore(f"stage {self.stage}", store)
            if sharing == self.ranks * self.stages:
                ranks = LocalRanks(world, self.rank, self.ranks, Sockets(inner, self.rank, self.ranks))
            else:
                ranks = Ranks(world, self.rank, self.ranks, _group(inner, self.rank, self.ranks, device, host))
        if self.stages > 1:
            inner = PrefixStore(f"rank {self.rank}", store)
            stages = Stages(world, self.stage, self.stages, _group(inner, self.stage, self.stages, device, host))
        return ranks, stages


def _group(store: Any, rank: int, size: int, device: torch.device, host: str) -> Any:
    from torch import distributed

    if device.type == "cuda":
        return distributed.ProcessGroupNCCL(store, rank, size, distributed.ProcessGroupNCCL.Options())
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices, options._timeout = [gloo.create_device(hostname=host)], TIMEOUT
    return gloo(store, rank, size, options)
