"""The Ray cluster that a job runs on."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass

OBJECT_STORE = 80 << 20  # bytes, of a local cluster: rows and answers are small, and travel beside it
SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # the latter warns otherwise


class ClusterError(RuntimeError):
    """The cluster cannot answer a job's rows."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one worker: a GPU with its share of a machine's processors, or a whole machine without GPUs.

    number: among those of its node. host: the machine's name, for messages.
    """

    node: str
    number: int
    host: str
    cpus: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator[None]:
    """address: HOST:PORT of a cluster that this machine is part of; "local" starts a cluster of this machine, "auto"
    does where none is running. A connection that the process already has is used as it is, and kept.

    Raises ClusterError if Ray is not installed, or if no cluster answers there.
    """
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"Ray cannot be imported ({error}); pip install 'pybatch[ray]'") from error
    if ray.is_initialized():
        yield
        return
    asked, address = address, running_cluster() if address == "auto" else address
    if address != "local":
        expect_listening(address)
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == "local" else {}
    try:
        # Ray puts the working folder before all that its workers import from; in a source tree of pybatch that would be
        # one without its native parts.
        with own_signals(), chdir("/"):
            # Ray looks for the token of a cluster of this machine where it finds that itself, and nowhere else.
            found_by_ray = asked if address != "local" else address
            ray.init(address=found_by_ray, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "" if "RAY_AUTH_MODE" in os.environ else "; RAY_AUTH_MODE=token is for one that asks for a token"
        raise ClusterError(f"the Ray cluster at {address} cannot be used: {error}{hint}") from error
    # log_to_driver says nothing of reports of workers that have died, which would go to standard output.
    ray._private.worker._worker_logs_enabled = False
    try:
        yield
    finally:
        with own_signals():
            ray.shutdown()
        ray._private.worker._worker_logs_enabled = True


def running_cluster() -> str:
    """What "auto" means: RAY_ADDRESS, the cluster that runs on this machine, or "local"."""
    from ray._private.services import get_ray_address_from_environment

    try:
        address = str(get_ray_address_from_environment("auto", None))
        if not os.environ.get("RAY_ADDRESS"):
            expect_listening(address)  # a cluster that was killed leaves its address behind
    except (ConnectionError, ClusterError):
        return "local"
    return address


def expect_listening(address: str) -> None:
    """Ray itself would try for minutes. Raises ClusterError."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ClusterError(f"ray: expected HOST:PORT, local or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"ray: no cluster answers at {address}: {error}") from error


@contextmanager
def own_signals() -> Iterator[None]:
    """Ray sets a handler of SIGTERM that ends the process without saving anything; the one from before stays."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if on_main_thread else None
    try:
        yield
    finally:
        if on_main_thread:
            signal.signal(signal.SIGTERM, before)


def find_slots(*, use_gpus: bool) -> list[Slot]:
    """One for each GPU of the machines that are in the cluster now; where none has any, or they are not to be used, one
    for each machine that has processors to give."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) if use_gpus else 0 for node in alive}
    slots = []
    for node in alive:
        cpus, on_node = int(node["Resources"].get("CPU", 0)), gpus[node["NodeID"]]
        count = on_node if any(gpus.values()) else min(1, cpus)
        for number in range(count):
            slots.append(Slot(node["NodeID"], number, node["NodeManagerHostname"], cpus // count, min(1, on_node)))
    return slots
