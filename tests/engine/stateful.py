"""Requests of every kind come, go and fail at random, in engines of random settings: no block is ever lost, everyone
ends, and each has the bits that it has alone.

``python -m engine.stateful STEPS [SEED]`` in tests/ takes so many steps of engines.
"""

from __future__ import annotations

import sys
import tempfile
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engine.grammars import SharedGrammars
from engine.runs import drain, run, some_prompt
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tiny_model import save_tiny_model

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.execution import masks
from pybatch.engine.kv_policies import HeavyHitters, SnapKV, StreamingLLM
from pybatch.engine.scheduling.block_pool import BlockPool, Pin
from pybatch.engine.scheduling.common_prefix import num_shared
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.engine.structured.matcher import Matcher
from pybatch.model import load_model
from pybatch.model.loader import LoadedModel

BLOCK = 8
VOCAB = 250
LONGEST = 64  # tokens of a prompt and its output
KV_DTYPES = ("auto", "int8", "int4")
SHARED = some_prompt(3 * BLOCK + 5, vocab=VOCAB)
PREFIXES = (SHARED, SHARED[:BLOCK], SHARED[: 2 * BLOCK + 3], some_prompt(5, 99, vocab=VOCAB))  # to be pinned
REGEX = "([ab]c|d)+[0-9]{2}"
STANDINGS = st.sampled_from(
    [
        *(Standing(), Standing(), Standing(user="ann", tpot_target=0.003), Standing(ttft_target=0.05)),
        Standing(priority=-1),
        Standing(priority=BACKGROUND),
    ]
)

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
    "held": {"temperature": 0.9, "seed": 4, "structured_outputs": {"regex": REGEX}, "ignore_eos": False},
    "held, repeating": {"temperature": 0.0, "structured_outputs": {"regex": "((ab)+c){9}"}},
    "held, forked": {"n": 3, "temperature": 1.0, "seed": 5, "structured_outputs": {"json": {"enum": [1, "two", [3]]}}},
    "held, searched": {"n": 2, "use_beam_search": True, "structured_outputs": {"regex": REGEX}, "max_tokens": 8},
    "held, pruned": {"structured_outputs": {"regex": "[a-d]+"}, "seed": 6, "kv_policy": StreamingLLM(window=10)},
    "not to be held": {"structured_outputs": {"regex": "(?=a)b"}},
    "held until nothing is left": {"structured_outputs": {"regex": "a{5}b+"}, "allowed_token_ids": [67, 3]},
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
            params = SamplingParams(
                **{"max_tokens": output, "ignore_eos": True, "logprobs": 1, "detokenize": False, **asked}
            )
            made.append(Wish(kind, tuple(prompt), params))
    return made


def bits(output: RequestOutput) -> Any:
    return output.error, output.prompt_logprobs, [(each.token_ids, each.logprobs) for each in output.outputs]


class Catalogue:
    """A model, and by the KV cache's dtype what each wish gives by itself: in an engine with nothing else."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.grammars = SharedGrammars(model)
        self.wishes = wishes()
        self.folder = tempfile.TemporaryDirectory()  # of prefixes, for all engines that are given space there
        self.alone = {dtype: [self._run(wish, dtype) for wish in self.wishes] for dtype in KV_DTYPES}
        for dtype in KV_DTYPES:
            engine = self.engine(EngineConfig(block_size=BLOCK, kv_cache_dtype=dtype, **self.on_disk(1.0)))
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
        (output,) = run(self.engine(config), [list(wish.prompt)], wish.params)
        assert output.error is None or wish.kind in ("not to be held", "held until nothing is left"), output.error
        return bits(output)

    def engine(self, config: EngineConfig) -> Engine:
        return self.grammars.given_to(Engine(self.model.decoder, self.model.tokenizer, config))


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


FAULTY = (
    (BlockPool, "allocate"),
    (BlockPool, "allocate"),
    (masks, "fill_masks"),
    (Matcher, "copy"),
    (Matcher, "accept"),
    (Matcher, "ends"),
)


@dataclass
class Counts:
    """Of all engines of a run."""

    steps: int = 0
    ended: int = 0
    aborted: int = 0
    failed: int = 0
    preemptions: int = 0
    from_disk: int = 0  # tokens
    pinned: int = 0
    refused: int = 0
    held: int = 0


class EngineMachine(RuleBasedStateMachine):
    """One engine. Subclasses set the catalogue. What a rule finds depends on how long things take, so that there are no
    preconditions: one with nothing to do does nothing."""

    catalogue: Catalogue
    counts = Counts()

    @initialize(config=st.fixed_dictionaries(SETTINGS))
    def begin(self, config: dict[str, Any]) -> None:
        self.config = config
        given = {name: value for name, value in config.items() if name != "prefix_cache_space"}
        if config["enable_prefix_caching"]:
            given |= self.catalogue.on_disk(config["prefix_cache_space"])
        self.engine = self.catalogue.engine(EngineConfig(block_size=BLOCK, **given))
        self.pending: dict[str, int] = {}  # by request id, the wish's number
        self.cached: dict[str, int] = {}  # by request id, the tokens that pins had of it when it came
        self.pinning: dict[str, Pin] = {}  # by request id
        self.pinned: list[Pin] = []
        self.faults = 0  # planted, for which no request has failed yet
        self.came = 0

    @rule(number=st.integers(0, 10**6), standing=STANDINGS, copies=st.integers(1, 4))
    def add(self, number: int, standing: Standing, copies: int) -> None:
        number %= len(self.catalogue.wishes)
        wish = self.catalogue.wishes[number]
        if not self._fits(wish):
            self.counts.refused += 1
            return
        tokens = array("q", wish.prompt)
        for _ in range(copies):
            request_id = self._new_id()
            self.engine.add_request(request_id, list(wish.prompt), wish.params, standing=standing)
            self.pending[request_id] = number
            self.cached[request_id] = max([num_shared(tokens, pin.tokens) for pin in self.pinned], default=0)

    @rule(prefix=st.sampled_from(PREFIXES))
    def pin(self, prefix: list[int]) -> None:
        if not self.config["enable_prefix_caching"] or len(self.pinned) + len(self.pinning) == 3:
            return
        request_id = self._new_id()
        try:
            self.pinning[request_id] = self.engine.pin_prefix(request_id, prefix)
        except ValueError as error:
            if "pinned" not in str(error):
                raise
            self.counts.refused += 1

    @rule(which=st.integers(0, 2))
    def unpin(self, which: int) -> None:
        if self.pinned:
            self.engine.unpin(self.pinned.pop(which % len(self.pinned)))
            self.cached.clear()

    @rule(which=st.integers(0, 10**6))
    def abort(self, which: int) -> None:
        ids = [*self.pending, *self.pinning]
        if not ids:
            return
        request_id = ids[which % len(ids)]
        self.pending.pop(request_id, None)
        self.pinning.pop(request_id, None)
        self.engine.abort(request_id)
        self.counts.aborted += 1

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count if self._busy else 0):
            self._step()

    @rule(after=st.integers(0, 5), where=st.sampled_from(FAULTY))
    def fail(self, after: int, where: tuple[Any, str]) -> None:
        """One call of the function raises, if the next step comes to it: an allocation of a block, or in a grammar."""
        if not self._busy:
            return
        owner, name = where
        call, left = getattr(owner, name), after

        def failing(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                self.faults += 1
                raise LookupError("injected")
            return call(*arguments, **options)

        with patch.object(owner, name, failing):
            self._step()

    @invariant()
    def blocks_are_accounted_for(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert self.engine.num_kv_blocks_pinned == len({block for pin in self.pinned for block in pin.blocks})

    @property
    def _busy(self) -> bool:
        return bool(self.pending or self.pinning)

    def _new_id(self) -> str:
        self.came += 1
        return str(self.came)

    def _fits(self, wish: Wish) -> bool:
        """Whether it is neither refused nor cut, as it may be beside pins."""
        intake = self.engine._intake
        try:
            most = intake._longest(*intake.accept(wish.prompt, wish.params))
        except ValueError:
            if not self.engine._intake.room.pins:
                raise
            return False
        return most == len(wish.prompt) + (wish.params.max_tokens or 0)

    def _step(self) -> None:
        self.counts.steps += 1
        for output in self.engine.step():
            is_planted = output.error is not None and "injected" in output.error
            if is_planted:
                assert self.faults > 0, "a request fails for a fault that there was not"
                self.faults -= 1
                self.counts.failed += 1
            if output.request_id in self.pinning:
                pin = self.pinning.pop(output.request_id)
                assert is_planted or output.error is None, output.error
                if not is_planted:
                    self.pinned.append(pin)
                    self.counts.pinned += 1
                continue
            number = self.pending.pop(output.request_id)
            if not is_planted:
                self._check(self.catalogue.wishes[number], output, number)

    def _check(self, wish: Wish, output: RequestOutput, number: int) -> None:
        assert bits(output) == self.catalogue.alone[self.config["kv_cache_dtype"]][number], wish
        self.counts.ended += 1
        self.counts.held += wish.params.structured_outputs is not None
        if wish.kind in ("greedy", "held"):
            pinned = min(self.cached.get(output.request_id, 0), len(wish.prompt) - 1)
            assert output.num_cached_tokens >= pinned, "what was pinned has left the cache"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # Each token of each sample is computed in one step at worst, if none is computed twice; allow for four times.
        most = 4 * sum(LONGEST * self.catalogue.wishes[number].params.n for number in self.pending.values()) + 50
        most += 4 * len(SHARED) * len(self.pinning)
        while (self.pending or self.pinning) and most:
            self._step()
            self.engine.check_integrity()
            most -= 1
        assert not self.pending, f"requests starve: {self.pending}"
        assert not self.pinning, f"prefixes starve: {self.pinning}"
        assert self.engine.num_kv_blocks_used == self.engine.num_kv_blocks_pinned
        for pin in self.pinned:
            self.engine.unpin(pin)
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
        catalogue = Catalogue(load_model(save_tiny_model(Path(folder))))
    machine, begin = machine_on(catalogue), time.monotonic()
    while machine.counts.steps < steps:
        run_machine(machine, 50, seed)
        seed += 1
        print(f"{machine.counts}, {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
