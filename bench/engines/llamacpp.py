"""llama.cpp through llama-cpp-python's C API: all sequences in one llama_decode batch, greedy.

The precision is the model file's own; --model names the GGUF file.
"""

from __future__ import annotations

import llama_cpp
import numpy as np

BATCH = 2048  # tokens a llama_decode call may hold


class Engine:
    def __init__(self, model: str, precision: str, threads: int) -> None:
        self.version = llama_cpp.__version__
        self.threads = threads
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silence, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {model!r}")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.context = None
        self.shape = (0, 0)

    def new_context(self, sequences: int, length: int) -> None:
        """A context for this many sequences of this length, kept while the shape stays."""
        length = -(-length // 256) * 256
        if self.shape == (sequences, length):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
            return
        if self.context:
            llama_cpp.llama_free(self.context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * length
        params.n_seq_max = sequences
        params.n_batch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
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
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        for row, sequence in rows.items():
            logits = llama_cpp.llama_get_logits_ith(self.context, row)
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
