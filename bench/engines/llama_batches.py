"""What llama.cpp and its fork ik_llama.cpp have in common: all sequences in one llama_decode batch, greedy.

An Engine names its api (a module of ctypes bindings of llama.h), opens the model and makes and clears contexts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

BATCH = 2048  # tokens a llama_decode call may hold


class BatchedEngine(ABC):
    api: Any

    def __init__(self, model: str, threads: int) -> None:
        self.threads = threads
        self.api.llama_backend_init()
        self.model = self.api.llama_model_load_from_file(model.encode(), self.model_params())
        if not self.model:
            raise SystemExit(f"{type(self).__module__}: cannot load {model!r}")
        self.vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.batch = self.api.llama_batch_init(BATCH, 0, 1)
        self.context = None
        self.shape = (0, 0)

    def model_params(self) -> Any:
        return self.api.llama_model_default_params()

    def context_params(self, sequences: int) -> Any:
        return self.api.llama_context_default_params()

    @abstractmethod
    def clear(self) -> None:
        """Empties the context's KV cache."""

    def new_context(self, sequences: int, length: int) -> None:
        """A context for this many sequences of this length, kept while the shape stays."""
        length = -(-length // 256) * 256
        if self.shape == (sequences, length):
            self.clear()
            return
        if self.context:
            self.api.llama_free(self.context)
        params = self.context_params(sequences)
        params.n_ctx = sequences * length
        params.n_seq_max = sequences
        params.n_batch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        self.context = self.api.llama_init_from_model(self.model, params)
        self.shape = (sequences, length)

    def add(self, sequence: int, token: int, position: int, wants_logits: bool) -> int:
        row = self.batch.n_tokens
        self.batch.token[row] = token
        self.batch.pos[row] = position
        self.batch.n_seq_id[row] = 1
        self.batch.seq_id[row][0] = sequence
        self.batch.logits[row] = wants_logits
        self.batch.n_tokens = row + 1
        return row

    def decode(self, rows: dict[int, int], outputs: list[list[int]]) -> None:
        """Runs the batch and appends the greedy token of each row in rows (row -> sequence)."""
        if self.api.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        for row, sequence in rows.items():
            logits = self.api.llama_get_logits_ith(self.context, row)
            outputs[sequence].append(int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax()))
        self.batch.n_tokens = 0

    def generate(self, requests: list[dict]) -> list[list[int]]:
        self.new_context(len(requests), max(len(r["prompt"]) + r["max_new"] for r in requests))
        outputs: list[list[int]] = [[] for _ in requests]
        self.batch.n_tokens = 0
        rows: dict[int, int] = {}
        for sequence, request in enumerate(requests):
            last = len(request["prompt"]) - 1
            for position, token in enumerate(request["prompt"]):
                if self.batch.n_tokens == BATCH:
                    self.decode(rows, outputs)
                    rows = {}
                row = self.add(sequence, token, position, position == last)
                if position == last:
                    rows[row] = sequence
        while rows:
            self.decode(rows, outputs)
            rows = {}
            for sequence, request in enumerate(requests):
                done = len(outputs[sequence])
                if done < request["max_new"]:
                    position = len(request["prompt"]) + done - 1
                    rows[self.add(sequence, outputs[sequence][-1], position, True)] = sequence
        return outputs
