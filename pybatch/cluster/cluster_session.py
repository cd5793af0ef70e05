"""A Ray cluster in a Session's place: who has rows to answer need not know which of the two it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Encoded, Prompt
from pybatch.api.session import Receiver, empty_output, encode_requests
from pybatch.cluster.worker import Loaded, Request
from pybatch.cluster.worker_pool import WorkerPool
from pybatch.engine.config import EngineConfig
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.jobs.fingerprint import model_fingerprint
from pybatch.machine.ray_cluster import connected
from pybatch.model.checkpoints.find import find_model, find_tokenizer
from pybatch.model.loader import load_tokenizer
from pybatch.model.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds without a worker, after which it is told what that may mean
WAIT = 0.05  # seconds that a step waits for outputs, so that its caller sees signals and new rows meanwhile


class ClusterSession:
    """Tokenises on this machine, and answers on the cluster's. For one thread."""

    def __init__(self, pool: WorkerPool, loaded: Loaded, tokenizer: Tokenizer | None, config: EngineConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.default_params = loaded.default_params
        self._pool = pool
        self.max_model_len = loaded.max_model_len
        self.arithmetic = loaded.arithmetic
        self.settings, self.scorer, self.unpacked = loaded.settings, loaded.scorer, loaded.unpacked
        self._receivers: dict[int, Receiver] = {}

    @property
    def capacity(self) -> int:
        return self._pool.capacity

    @property
    def metrics(self) -> EngineMetrics:
        return self._pool.metrics

    def encode(self, requests: Sequence[tuple[Prompt, Params]]) -> list[Encoded]:
        """As Session's."""
        return encode_requests(requests, self.tokenizer, self.max_model_len)

    def add(
        self,
        prompt: Encoded,
        params: Params,
        receive: Receiver,
        *,
        index: int,
        standing: Standing = ORDINARY,
    ) -> str:
        """As Session's; index: unlike that of every request that has not finished."""
        if prompt.error is not None:
            receive(empty_output(str(index), "error", prompt.text, (), prompt.error, prompt.error_code))
            return str(index)
        self._receivers[index] = receive
        self._pool.add([Request(index, replace(prompt, text=None), params, standing)])
        return str(index)

    def step(self) -> None:
        """Hands outputs to their receivers; waits a little for some. Raises ClusterError if there is no worker left
        that could bring any, or if workers keep dying."""
        for index, output in self._pool.outputs(WAIT):
            self._receivers.pop(index)(replace(output, request_id=str(index)))

    def abort(self, request_id: str) -> None:
        """As Session's."""
        if self._receivers.pop(int(request_id), None) is not None:
            self._pool.withdraw(int(request_id))


@contextmanager
def cluster_session(address: str, arguments: Mapping[str, Any]) -> Iterator[ClusterSession]:
    """One whose first worker is ready. Leaving the block ends the workers.

    address: of the Ray cluster, as `connected` takes it. arguments: EngineArgs', for each worker.

    Raises ClusterError if there is no such cluster or a worker cannot load the model, ModelError if this machine has no
    such model, whose files workers compare theirs with and whose tokenizer is used here.
    """
    config = EngineArgs(**arguments)
    fingerprint = model_fingerprint(find_model(arguments["model"]))
    tokenizer = None
    if not arguments.get("skip_tokenizer_init"):
        given = arguments.get("tokenizer")
        tokenizer = load_tokenizer(find_tokenizer(given) if given else find_model(arguments["model"]))
    of_workers = {**arguments, "max_queued": None}  # the pool bounds what they have
    with connected(address), closing(WorkerPool(of_workers, fingerprint)) as pool:
        start, told = time.monotonic(), False
        while pool.loaded is None:
            pool.outputs(WAIT)
            if not told and time.monotonic() - start > PATIENCE:
                logger.warning("no worker yet: they load the model, or others use the cluster's processors or GPUs")
                told = True
        yield ClusterSession(pool, pool.loaded, tokenizer, config)
