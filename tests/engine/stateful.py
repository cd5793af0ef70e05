"""Requests of every kind come, go and fail at random, in engines of random settings: no block is ever lost, everyone
ends, and each has the bits that it has alone.

``python -m engine.stateful STEPS [SEED]`` in tests/ takes so many steps of engines.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engine.runs import drain, run, some_prompt
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tiny_model import save_tiny_model

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.kv_policies import HeavyHitters, SnapKV, StreamingLLM
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.model import Decoder, load_model

BLOCK = 8
VOCAB = 250
LONGEST = 64  # tokens of a prompt and its output
KV_DTYPES = ("auto", "int8", "int4")
SHARED = some_prompt(3 * BLOCK + 5, vocab=VOCAB)

# By name, what one may ask for. Each comes with several prompts.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    "penalised": {"temperature": 0.0, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    "forked": {"n": 3, "temperature": 1.0, "seed": 5},
    "searched": {"n": 2, "use_beam_search": True, "max_tokens": 8},
    "told": {"temperature": 0.0, "prompt_logprobs": 1},
    "streaming": {"temperature": 0.0, "kv_policy": StreamingLLM(window=10)},
    "snapkv": {"n": 2, "temperature": 1.0, "seed": 6, "kv_policy": SnapKV(budget=9, observed=4, pooling=3)},
    "heavy": {"temperature": 0.0, "kv_policy": HeavyHitters(heavy=5, recent=6)},
    "heavy, forked": {"n": 3, "temperature": 1.0, "seed": 7, "kv_policy": HeavyHitters(heavy=4, recent=4)},
    "streaming, forked": {"n": 2, "temperature": 1.0, "seed": 5, "kv_policy": StreamingLLM(window=1)},
}


@dataclass(frozen=True)
class Wish:
    """A request that may come any number of times."""

    kind: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(hash=False)


def wishes() -> list[Wish]:
    made = []
    for number, (kind, asked) in enumerate(KINDS.items()):
        for i, (shared, length, output) in enumerate(((True, 3, 9), (False, 37, 20), (True, 11, 24), (False, 1, 5))):
            prompt = (SHARED if shared else []) + some_prompt(length, 10 * number + i, vocab=VOCAB)
            params = SamplingParams(**{"max_tokens": output, "ignore_eos": True, "logprobs": 1, **asked})
            made.append(Wish(kind, tuple(prompt), params))
    return made


def bits(output: RequestOutput) -> Any:
    return output.error, output.prompt_logprobs, [(each.token_ids, each.logprobs) for each in output.outputs]


class Catalogue:
    """A model, and by the KV cache's dtype what each wish gives by itself: in an engine with nothing else."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.wishes = wishes()
        self.folder = tempfile.TemporaryDirectory()  # of prefixes, for all engines that are given space there
        self.alone = {dtype: [self._run(wish, dtype) for wish in self.wishes] for dtype in KV_DTYPES}
        for dtype in KV_DTYPES:
            engine = Engine(decoder, None, EngineConfig(block_size=BLOCK, kv_cache_dtype=dtype, **self.on_disk(1.0)))
            engine.pin_prefix("pin", SHARED)
            assert len(list(drain(engine))) == 1
            assert engine.prefix_files is not None
            engine.prefix_files.wait()

    def on_disk(self, space: float) -> dict[str, Any]:
        return {"prefix_cache_dir": self.folder.name, "prefix_cache_space": space} if space else {}

    def _run(self, wish: Wish, kv_cache_dtype: str) -> Any:
        config = EngineConfig(
            num_kv_blocks=64, block_size=BLOCK, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype
        )
        (output,) = run(Engine(self.decoder, None, config), [list(wish.prompt)], wish.params)
        assert output.error is None, output.error
        return bits(output)


SETTINGS = {
    "policy": st.sampled_from(
        [
            "continuous",
            "continuous",
            "static(by_length=True)",
            "static(batch_size=2)",
            "dynamic(max_wait=0)",
            "micro(micro_batch=2)",
        ]
    ),
    "max_num_seqs": st.sampled_from([3, 7, 32]),
    "max_num_batched_tokens": st.sampled_from([3, 16, 64, 512]),
    "max_background_tokens": st.sampled_from([4, 256]),
    "num_kv_blocks": st.sampled_from([9, 12, 20, 200]),
    "enable_prefix_caching": st.booleans(),
    "predict_lengths": st.booleans(),
    "kv_cache_dtype": st.sampled_from(KV_DTYPES),
    "swap_space": st.sampled_from([0.0, 0.001]),
    "prefix_cache_space": st.sampled_from([0.0, 1.0, 0.0001]),
    "speculative_config": st.sampled_from([None, '{"prompt_lookup_min": 1, "adaptive": false}']),
}


@dataclass
class Counts:
    """Of all engines of a run."""

    steps: int = 0
    ended: int = 0
    aborted: int = 0
    failed: int = 0
    preemptions: int = 0
    from_disk: int = 0  # tokens


class EngineMachine(RuleBasedStateMachine):
    """One engine. Subclasses set the catalogue."""

    catalogue: Catalogue
    counts = Counts()

    @initialize(config=st.fixed_dictionaries(SETTINGS))
    def begin(self, config: dict[str, Any]) -> None:
        self.config = config
        given = {name: value for name, value in config.items() if name != "prefix_cache_space"}
        if config["enable_prefix_caching"]:
            given |= self.catalogue.on_disk(config["prefix_cache_space"])
        self.engine = Engine(self.catalogue.decoder, None, EngineConfig(block_size=BLOCK, **given))
        self.pending: dict[str, int] = {}  # by request id, the wish's number
        self.faults = 0  # planted, for which no request has failed yet
        self.came = 0

    @rule(number=st.integers(0, 10**6), priority=st.sampled_from([0, 0, 0, -1, BACKGROUND]), copies=st.integers(1, 4))
    def add(self, number: int, priority: int, copies: int) -> None:
        number %= len(self.catalogue.wishes)
        wish = self.catalogue.wishes[number]
        for _ in range(copies):
            self.came += 1
            self.engine.add_request(
                str(self.came), list(wish.prompt), wish.params, standing=Standing(priority=priority)
            )
            self.pending[str(self.came)] = number

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 10**6))
    def abort(self, which: int) -> None:
        request_id = list(self.pending)[which % len(self.pending)]
        del self.pending[request_id]
        self.engine.abort(request_id)
        self.counts.aborted += 1

    @precondition(lambda self: self.pending)
    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step()

    @precondition(lambda self: self.pending)
    @rule(after=st.integers(0, 5))
    def fail_to_allocate(self, after: int) -> None:
        """One allocation of a block raises, if the next step comes to it."""
        allocate, left = BlockPool.allocate, after

        def failing(pool: BlockPool) -> int:
            nonlocal left
            left -= 1
            if left == -1:
                self.faults += 1
                raise LookupError("injected")
            return allocate(pool)

        with patch.object(BlockPool, "allocate", failing):
            self._step()

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()

    def _step(self) -> None:
        self.counts.steps += 1
        for output in self.engine.step():
            number = self.pending.pop(output.request_id)
            if output.error is not None and "injected" in output.error:
                assert self.faults > 0, "a request fails for a fault that there was not"
                self.faults -= 1
                self.counts.failed += 1
                continue
            alone = self.catalogue.alone[self.config["kv_cache_dtype"]][number]
            assert bits(output) == alone, self.catalogue.wishes[number]
            self.counts.ended += 1

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # Each token of each sample is computed in one step at worst, if none is computed twice; allow for four times.
        most = 4 * sum(LONGEST * self.catalogue.wishes[number].params.n for number in self.pending.values()) + 50
        while self.pending and most:
            self._step()
            self.engine.check_integrity()
            most -= 1
        assert not self.pending, f"requests starve: {self.pending}"
        assert self.engine.num_kv_blocks_used == 0
        self.counts.preemptions += self.engine.metrics.preemptions
        self.counts.from_disk += self.engine.metrics.disk_tokens


def machine_on(catalogue: Catalogue) -> type[EngineMachine]:
    return type("MachineOnModel", (EngineMachine,), {"catalogue": catalogue, "counts": Counts()})


def run_machine(machine: type[EngineMachine], examples: int, seed: int | None = None) -> None:
    """Runs `examples` engines, each for up to 30 events; the same ones each time if there is no seed."""
    chosen = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        derandomize=seed is None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    if seed is not None:
        machine = with_seed(seed)(machine)
    run_state_machine_as_test(machine, settings=chosen)


def main(steps: int, seed: int = 0) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        catalogue = Catalogue(load_model(save_tiny_model(Path(folder)), skip_tokenizer=True).decoder)
    machine, begin = machine_on(catalogue), time.monotonic()
    while machine.counts.steps < steps:
        run_machine(machine, 50, seed)
        seed += 1
        print(f"{machine.counts}, {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
