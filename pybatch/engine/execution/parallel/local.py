"""Followers on this machine: on a CPU each has a share of the cores, and rank i has GPU i."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import torch

from pybatch.engine.execution.parallel.follower import Start
from pybatch.engine.execution.parallel.followers import End

COMMAND = [sys.executable, "-m", "pybatch.engine.execution.parallel.follower"]
PATIENCE = 5.0  # seconds until one that does not end is killed


class ThisMachine:
    """size: of all processes, this one too. threads: of each."""

    address = "127.0.0.1"

    def __init__(self, size: int, threads: int, device: torch.device) -> None:
        self._threads, self._device, self._sharing = threads, device, size if device.type == "cpu" else 1

    def threads(self, number: int) -> int:
        return self._threads

    def sharing(self, number: int) -> int:
        return self._sharing

    def start(self, start: Start) -> LocalProcess:
        device = "cpu" if self._device.type == "cpu" else f"cuda:{start.place.number}"
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # what ends is told of once, by pybatch
        environment = {**quiet, **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, env=environment, start_new_session=True, close_fds=True
        )
        assert process.stdin is not None
        with process.stdin as standard_input:
            pickle.dump(replace(start, load={**start.load, "device": device}), standard_input)
        return LocalProcess(process)

    def close(self) -> None:
        pass


class LocalProcess:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ended(self) -> End | None:
        status = self._process.poll()
        if status is None:
            return None
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return End(status != 0, f"process {self._process.pid}, has ended with {how}")

    def end(self) -> None:
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
