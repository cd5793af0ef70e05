"""Hands a job's rows to the workers of a Ray cluster, and takes their outcomes back."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pybatch
from pybatch.api.engine_args import EngineArgs
from pybatch.api.lora_names import lora_modules
from pybatch.api.session import empty_output
from pybatch.cluster.process import Process, wait_for_ends, watch
from pybatch.cluster.worker import Loaded, Request
from pybatch.cluster.worker_actor import WorkerActor
from pybatch.engine import RequestOutput
from pybatch.engine.metrics import EngineMetrics
from pybatch.machine.folders import of_home
from pybatch.machine.ray_cluster import ClusterError, Slot, find_slots

logger = logging.getLogger(__name__)

CALLS = 2  # in flight to a worker, so that it has the next one when it has answered one
ALONE = 2  # deaths of workers that a row has seen, after which it runs with no other beside it
DEATHS = 3  # after which it has failed
DEATHS_OF_SLOT = 4  # on average, with no outcome between them, after which the job cannot go on
ENDING = 10.0  # seconds that workers of this machine have to end; they need a fraction of one
LOOK_AROUND = 5.0  # seconds between two looks for machines that have come back or are new


@dataclass(eq=False, slots=True)
class Member:
    """A worker, and what it has been given. started: a call that brings its Process. calls: the others in flight, the
    oldest first; the first of all loads the model. rows: by their numbers, in the order in which they were given.
    suspect: it has one row, which is to run alone."""

    slot: Slot
    actor: Any
    started: Any
    calls: deque[Any]
    loaded: Loaded | None = None
    rows: dict[int, Request] = field(default_factory=dict)
    withdrawn: list[int] = field(default_factory=list)
    suspect: bool = False

    @property
    def ready(self) -> bool:
        return self.loaded is not None

    @property
    def process(self) -> Process | None:
        """None if it has not started yet, or died as it did."""
        import ray

        try:
            process: Process = ray.get(self.started, timeout=0)
        except ray.exceptions.RayError:
            return None
        return process


class WorkerPool:
    """One engine on each GPU of the cluster that the process is connected to, or on each machine.

    Rows go to the workers in the order in which they came, and each gets one outcome. The rows of a worker whose
    process or machine dies go to the others, and it is started again where the machine is still there. A row with which
    three workers have died, the last time while it ran alone, has failed.

    metrics: of all workers, as of one engine. loaded: what the first worker that was ready says of the model; None
    until then.
    """

    def __init__(self, arguments: Mapping[str, Any], fingerprint: str) -> None:
        """arguments: EngineArgs'. fingerprint: of the model, which every machine must have.

        Raises ClusterError if no machine of the cluster can have a worker."""
        import ray

        self._arguments, self._fingerprint = absolute_paths(arguments), fingerprint
        self._full = EngineArgs(**self._arguments).on("cpu").max_num_seqs
        self._actor_class: Any = ray.remote(max_restarts=0, max_task_retries=0)(WorkerActor)
        self._members: list[Member] = []
        self._pending: set[int] = set()  # the rows that have no outcome yet
        self._waiting: deque[Request] = deque()  # those of them that no worker has
        self._suspects: deque[Request] = deque()  # and those that are to run alone
        self._deaths: dict[int, int] = {}  # that pending rows have seen
        self._failed: list[tuple[int, RequestOutput]] = []
        self._proven: set[Slot] = set()  # where a worker has once been ready
        self._deaths_in_a_row = 0
        self._next_look = 0.0
        self.metrics = EngineMetrics(kv_blocks=1)
        self.loaded: Loaded | None = None
        self._fill_slots()

    @property
    def capacity(self) -> int:
        """How many rows the pool is to have, so that no worker has to wait for some, not even one that is to come."""
        return max(1, len(self._members)) * self._most

    def add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._pending.add(request.index)
            self._waiting.append(request)

    def outputs(self, timeout: float) -> list[tuple[int, RequestOutput]]:
        """Of rows that have finished, with their numbers; waits for some, at most `timeout` seconds.

        Raises ClusterError if a worker cannot load the model, if workers keep dying, or if no machine is left.
        """
        import ray

        self._fill_slots()
        self._hand_out()
        finished, self._failed = self._failed, []
        calls = {member.calls[0]: member for member in self._members if member.calls}
        if not calls:
            if not finished:
                time.sleep(timeout)
            return finished
        ray.wait(list(calls), timeout=0 if finished else timeout)
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            finished += self._receive(calls[call])
        self._hand_out()  # before the caller saves what has finished
        return finished

    def withdraw(self, index: int) -> None:
        """Nothing more comes of a row."""
        self._pending.discard(index)
        self._deaths.pop(index, None)
        for member in self._members:
            if member.rows.pop(index, None) is not None:
                member.withdrawn.append(index)
                member.suspect = False

    def close(self) -> None:
        """Ends the workers, whatever they are at. Those of this machine have gone when it returns, so that the memory
        of its GPUs is free; on others Ray gives a GPU to nobody before that."""
        members, self._members = self._members, []
        processes = [process for member in members if (process := member.process) is not None]
        watched = [fd for process in processes if (fd := watch(process)) is not None]
        for member in members:
            self._kill(member)
        if not wait_for_ends(watched, ENDING):
            logger.warning("workers are still ending: they may use this machine's memory a while longer")

    @property
    def _most(self) -> int:
        """Rows of a worker, so that its engine has some to choose from, and some while outcomes and rows travel."""
        return 2 * self._full

    # ---- rows ----

    def _hand_out(self) -> None:
        for member in self._members:
            while member.ready and len(member.calls) < CALLS:
                requests = self._share(member)
                member.rows |= {request.index: request for request in requests}
                if not member.rows and not member.withdrawn:
                    break
                member.calls.append(member.actor.exchange.remote(requests, member.withdrawn))
                member.withdrawn = []

    def _share(self, member: Member) -> list[Request]:
        """What a worker gets: as many rows as make its share of all, so that shares become smaller towards the end."""
        ready = [each for each in self._members if each.ready]
        if member.suspect:
            return []
        if self._suspects and member is ready[-1]:  # it gets nothing else until these are done
            alone = [] if member.rows else self._first(1, self._suspects)
            member.suspect = bool(alone)
            return alone
        if not self._waiting:
            return self._moved_to(member)
        rows = len(self._waiting) + sum(len(each.rows) for each in ready)
        return self._first(min(-(-rows // len(ready)), self._most) - len(member.rows), self._waiting)

    def _first(self, count: int, queue: deque[Request]) -> list[Request]:
        """Takes them out of the queue, and those before them that have been withdrawn."""
        first: list[Request] = []
        while queue and len(first) < count:
            request = queue.popleft()
            if request.index in self._pending:
                first.append(request)
        return first

    def _moved_to(self, member: Member) -> list[Request]:
        """Rows that wait in another worker's engine and could run in this one's."""
        busiest = max(self._members, key=lambda each: len(each.rows))
        count = min(len(busiest.rows) - self._full, self._full - len(member.rows))
        moved = list(busiest.rows)[-count:] if count > 0 else []
        busiest.withdrawn += moved
        return [busiest.rows.pop(index) for index in moved]

    def _receive(self, member: Member) -> list[tuple[int, RequestOutput]]:
        import ray

        try:
            answer = ray.get(member.calls.popleft())
        except ray.exceptions.RayError as error:
            self._bury(member, error)
            return []
        if not member.ready:
            self._welcome(member, answer)
            return []
        for step in answer.steps:
            self.metrics.step(**step)
        self.metrics.output_tokens += answer.output_tokens
        finished = [(index, output) for index, output in answer.finished if self._settle(index, member)]
        for _, output in finished:
            if output.metrics.first_token_time is not None:
                self.metrics.first_token(output.metrics)
            self.metrics.finished(output.metrics, failed=output.error is not None)
        return finished

    def _welcome(self, member: Member, loaded: Loaded) -> None:
        if self.loaded is None:
            self.loaded, self.metrics.kv_blocks = loaded, loaded.kv_blocks
            self._full = loaded.max_num_seqs  # which depends on its device where it is not given
        if loaded.max_model_len != self.loaded.max_model_len:
            raise ClusterError(
                f"{member.slot.host} has room for {loaded.max_model_len:,} tokens of a row, another machine for "
                f"{self.loaded.max_model_len:,}, so that a row's answer would depend on where it runs: give a smaller "
                "max_model_len"
            )
        if loaded.arithmetic != self.loaded.arithmetic:
            told = f"{loaded.arithmetic} on {member.slot.host}, {self.loaded.arithmetic} elsewhere"
            logger.warning("machines of several kinds: the last bits of answers depend on where rows run: %s", told)
        member.loaded = loaded
        self._proven.add(member.slot)

    def _settle(self, index: int, by: Member) -> bool:
        """Returns False if the row, which was moved to another worker too late, has its outcome already."""
        if index not in self._pending:
            return False
        self._pending.remove(index)
        self._deaths.pop(index, None)
        self._deaths_in_a_row = 0
        by.suspect = False
        for member in self._members:
            if member.rows.pop(index, None) is not None and member is not by:
                member.withdrawn.append(index)
        return True

    # ---- workers ----

    def _fill_slots(self) -> None:
        """Starts a worker wherever there is a place without one."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_AROUND
        use_gpus = str(self._arguments.get("device", "auto")) != "cpu"
        taken = {member.slot for member in self._members}
        self._members += [self._start(slot) for slot in find_slots(use_gpus=use_gpus) if slot not in taken]
        if not self._members:
            raise ClusterError("the Ray cluster has no machine with processors to give to a worker")

    def _start(self, slot: Slot) -> Member:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._actor_class.options(
            num_cpus=min(1, slot.cpus) if slot.gpus else slot.cpus,  # beside a GPU others may have the rest
            num_gpus=slot.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
        ).remote()
        started = actor.process.remote()
        load = actor.load.remote(pybatch.__version__, self._arguments, self._fingerprint, slot.cpus)
        return Member(slot, actor, started, deque([load]))

    def _bury(self, member: Member, error: Exception) -> None:
        """Its rows go to the others."""
        import ray

        self._members.remove(member)
        self._kill(member)
        reason = in_short(error)
        cannot_load = not member.ready and (isinstance(error, ray.exceptions.RayTaskError) or cannot_start(error))
        if cannot_load and member.slot not in self._proven:
            raise ClusterError(f"{member.slot.host}: {reason}") from error
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > DEATHS_OF_SLOT * (len(self._members) + 1):
            raise ClusterError(f"{self._deaths_in_a_row} workers have died with no answer between: {reason}") from error
        process = member.process
        name = f"worker {process.pid if process else '(starting)'} on {member.slot.host}"
        logger.warning("%s: %s; %d rows go to others", name, reason, len(member.rows))
        if member.ready:
            self._next_look = 0.0
        for request in reversed(member.rows.values()):
            self._take_back(request, reason)

    def _take_back(self, request: Request, reason: str) -> None:
        deaths = self._deaths[request.index] = self._deaths.get(request.index, 0) + 1
        if deaths < ALONE:
            self._waiting.appendleft(request)
        elif deaths < DEATHS:
            self._suspects.appendleft(request)
        else:
            del self._deaths[request.index]
            self._pending.remove(request.index)
            message = f"{deaths} workers died while they had this row, the last one while it ran alone: {reason}"
            self._failed.append(
                (request.index, empty_output(str(request.index), "error", error=message, error_code="server_error"))
            )

    @staticmethod
    def _kill(member: Member) -> None:
        import ray

        with suppress(Exception):  # it is dead, or the cluster is
            ray.kill(member.actor)


def absolute_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Workers have other working folders. What may be a name as well is a path if it is there."""

    def absolute(name: str, value: Any) -> Any:
        if value is None:
            return None
        if name in ("weights_cache_dir", "prefix_cache_dir"):
            return os.path.abspath(of_home(value))
        if name in ("model", "tokenizer", "adapter", "generation_config", "pinned_prefixes") and os.path.exists(value):
            return os.path.abspath(value)
        return lora_modules(value) if name == "lora_modules" else value

    return {name: absolute(name, value) for name, value in arguments.items()}


def cannot_start(error: Exception) -> bool:
    """Whether a worker's class could not be imported where it was to run."""
    return "an error raised in its creation task" in str(error)


def in_short(error: Exception) -> str:
    """One line: of an error that a worker raised, that one; of a worker's death what Ray knows of its cause."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    if cannot_start(error):  # with the traceback of it
        return lines[-1]
    told = next((line for line in lines if line.startswith("The actor is dead because")), lines[0])
    return told.partition(". ")[0].removeprefix("The actor is dead because ")
