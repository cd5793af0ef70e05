"""Requests of every kind come, go and fail at random, in engines of random settings: no block is ever lost, everyone
ends, and each has the bits that it has alone.

``python -m engine.stateful STEPS [SEED]`` in tests/ takes so many steps of engines, and as many with recurrent states.
"""

from __future__ import annotations

import sys
import tempfile
import time
from array import array
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from engine.grammars import SharedGrammars
from engine.runs import drain, memory_for_states, run, some_prompt
from engine.wishes import BLOCK, EOS, LONGEST, SHARED, VOCAB, Wish, bits, mixed, save_adapters, wishes
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
from model.families import CONFIGS
from tiny_model import save_tiny_model
from transformers import AutoModelForCausalLM

from pybatch.engine import Engine, EngineConfig, RequestOutput
from pybatch.engine.detokenizer import Detokenizer
from pybatch.engine.execution import masks
from pybatch.engine.execution.kv_pruner import KvPruner
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.sampling_params import RequestOutputKind
from pybatch.engine.scheduling.block_pool import BlockPool, Pin
from pybatch.engine.scheduling.common_prefix import num_shared
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.engine.structured.matcher import Matcher
from pybatch.model import load_model
from pybatch.model.loader import LoadedModel

KV_DTYPES = ("auto", "int8", "int4")
PREFIXES = (SHARED, SHARED[:BLOCK], SHARED[: 2 * BLOCK + 3], some_prompt(5, 99, vocab=VOCAB))  # to be pinned
STANDINGS = st.sampled_from(
    [
        *(Standing(), Standing(), Standing(user="ann", tpot_target=0.003), Standing(ttft_target=0.05)),
        Standing(priority=-1),
        Standing(priority=BACKGROUND),
    ]
)


class Catalogue:
    """A model, and by the KV cache's dtype what each wish gives by itself: in an engine that never has another.

    Wishes are numbered: first those of one feature, with a random mix of many after each.
    """

    def __init__(self, path: Path, *, recurrent: bool = False) -> None:
        self.recurrent = recurrent
        self.folder = tempfile.TemporaryDirectory()  # of prefixes, for all engines that are given space there
        self.adapters = [] if recurrent else save_adapters(Path(self.folder.name), 3)
        self.model = load_model(path, max_loras=min(2, len(self.adapters)))  # so that some wait for a place
        self._path = path
        self.grammars = SharedGrammars(self.model)
        self._plain = [each for each in wishes() if not (recurrent and each.params.kv_policy)]
        self._mixed: dict[int, Wish] = {}
        self._engines: dict[str, Engine] = {}
        self._alone: dict[tuple[str, int], Any] = {}
        if not recurrent:
            self._store()

    def wish(self, number: int) -> Wish:
        if number % 2 == 0:
            return self._plain[number // 2 % len(self._plain)]
        if number not in self._mixed:
            self._mixed[number] = mixed(number, self.adapters, pruned=not self.recurrent)
        return self._mixed[number]

    def alone(self, kv_cache_dtype: str, number: int) -> Any:
        """Its bits."""
        key = kv_cache_dtype, number
        if key not in self._alone:
            wish = self.wish(number)
            engine = self._engines.get(kv_cache_dtype)
            if engine is None:
                config = EngineConfig(
                    num_kv_blocks=64,
                    max_model_len=LONGEST,
                    block_size=BLOCK,
                    enable_prefix_caching=False,
                    kv_cache_dtype=kv_cache_dtype,
                )
                model = load_model(self._path, max_loras=len(self.adapters))  # each engine has its own places for them
                engine = self._engines[kv_cache_dtype] = self.engine(config, model)
            (output,) = run(engine, [list(wish.prompt)], wish.params)
            expected = wish.kind in ("mixed", "not to be held", "held until nothing is left")
            assert output.error is None or expected, output.error
            self._alone[key] = bits(output)
        return self._alone[key]

    def _store(self) -> None:
        """Has a prefix on disk."""
        for dtype in KV_DTYPES:
            engine = self.engine(EngineConfig(block_size=BLOCK, kv_cache_dtype=dtype, **self.on_disk(1.0)))
            engine.pin_prefix("pin", SHARED)
            assert len(list(drain(engine))) == 1
            assert engine.prefix_files is not None
            engine.prefix_files.wait()

    def on_disk(self, space: float) -> dict[str, Any]:
        return {"prefix_cache_dir": self.folder.name, "prefix_cache_space": space} if space else {}

    def engine(self, config: EngineConfig, model: LoadedModel | None = None) -> Engine:
        """Its draft model, if it is to have one, is the model itself, whose drafts are often right."""
        model = model or self.model
        decoder = model.decoder
        return self.grammars.given_to(Engine(decoder, model.tokenizer, config, decoder, adapter_slots=model.adapters))


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
    "speculative_config": st.sampled_from(
        [
            None,
            '{"prompt_lookup_min": 1, "adaptive": false}',
            '{"method": "suffix", "adaptive": false}',
            '{"model": "given", "num_speculative_tokens": 3, "adaptive": false}',
        ]
    ),
    "num_states": st.sampled_from([4, 7, 1000]),  # at most
}
NOT_WITH_STATES = ("swap_space", "prefix_cache_space", "speculative_config")

FAULTY = (
    (BlockPool, "allocate"),
    (BlockPool, "allocate"),
    (masks, "fill_masks"),
    (Matcher, "copy"),
    (Matcher, "accept"),
    (Matcher, "ends"),
    (Detokenizer, "add"),
    (KvPruner, "prune"),
    (ModelRunner, "run"),
    (Sampler, "sample"),
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
    streamed: int = 0
    adapted: int = 0
    drafted: int = 0  # tokens
    broken: int = 0  # engines, by a fault of the machine


class EngineMachine(RuleBasedStateMachine):
    """One engine. Subclasses set the catalogue. What a rule finds depends on how long things take, so that there are no
    preconditions: one with nothing to do does nothing."""

    catalogue: Catalogue
    counts = Counts()

    @initialize(config=st.fixed_dictionaries(SETTINGS))
    def begin(self, config: dict[str, Any]) -> None:
        self.config = config
        recurrent = self.catalogue.recurrent
        left_out = ("num_states", *(NOT_WITH_STATES if recurrent else ("prefix_cache_space",)))
        given = {name: value for name, value in config.items() if name not in left_out}
        if config["enable_prefix_caching"] and not recurrent:
            given |= self.catalogue.on_disk(config["prefix_cache_space"])
        decoder = self.catalogue.model.decoder
        with memory_for_states(decoder, config["num_states"]) if recurrent else nullcontext():
            self.engine = self.catalogue.engine(EngineConfig(block_size=BLOCK, max_model_len=LONGEST, **given))
        self.pending: dict[str, int] = {}  # by request id, the wish's number
        self.coming: dict[str, RequestOutput] = {}  # by request id, what has come of a stream
        self.cached: dict[str, int] = {}  # by request id, the tokens that pins had of it when it came
        self.pinning: dict[str, Pin] = {}  # by request id
        self.pinned: list[Pin] = []
        self.faults = 0  # planted, for which no request has failed yet
        self.came = 0

    @rule(number=st.integers(0, 10**6), standing=STANDINGS, copies=st.integers(1, 4), stream=st.booleans())
    def add(self, number: int, standing: Standing, copies: int, stream: bool) -> None:
        wish = self.catalogue.wish(number)
        if not self._fits(wish):
            self.counts.refused += 1
            return
        tokens = array("q", wish.prompt)
        for _ in range(copies):
            request_id = self._new_id()
            self.engine.add_request(request_id, list(wish.prompt), wish.params, standing=standing, stream=stream)
            self.pending[request_id] = number
            if self.catalogue.recurrent:
                blocks = self.engine._intake.room._num_usable(tokens, tuple(self.pinned))
                self.cached[request_id] = blocks * BLOCK
            else:
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
        for each in (self.pending, self.pinning, self.coming):
            each.pop(request_id, None)
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
            outputs = self.engine.step()
        self._take(outputs)  # not before: what one gives by itself may be found only now

    @rule(rarely=st.integers(0, 15))
    def break_down(self, rarely: int) -> None:
        """Memory runs out: the engine discards what has not ended, and goes on."""
        if not self._busy or rarely:
            return
        try:
            with patch.object(Sampler, "sample", side_effect=MemoryError("injected")):
                outputs = self.engine.step()
        except MemoryError:
            self._take(self.engine.take_outputs())
            for each in (self.pending, self.pinning, self.coming):
                each.clear()
            self.counts.broken += 1
            assert not self.engine.has_unfinished()
        else:
            self._take(outputs)

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
            tokens, params = intake.accept(wish.prompt, wish.params)
            most = intake._longest(tokens, params)
        except ValueError as error:
            if not (intake.room.pins or "KV blocks" in str(error) or "recurrent states" in str(error)):
                raise
            return False
        return most == min(LONGEST, len(tokens) + (params.max_tokens or LONGEST))

    def _step(self) -> None:
        self._take(self.engine.step())

    def _take(self, outputs: list[RequestOutput]) -> None:
        """Those of a step."""
        self.counts.steps += 1
        for output in outputs:
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
            number = self.pending[output.request_id]
            wish = self.catalogue.wish(number)
            output = self._joined(output, deltas=wish.params.output_kind is RequestOutputKind.DELTA)
            if output.finished:
                del self.pending[output.request_id]
                if not is_planted:
                    self._check(wish, output, number)

    def _joined(self, output: RequestOutput, *, deltas: bool) -> RequestOutput:
        """With what has come of it."""
        before = self.coming.pop(output.request_id, None)
        if before is not None:
            self.counts.streamed += 1
            if deltas:
                before.add(output)
                output = before
            else:
                for old, new in zip(before.outputs, output.outputs, strict=True):
                    assert new.text.startswith(old.text), "a stream takes back what it has shown"
        if not output.finished:
            self.coming[output.request_id] = output
        return output

    def _check(self, wish: Wish, output: RequestOutput, number: int) -> None:
        assert bits(output) == self.catalogue.alone(self.config["kv_cache_dtype"], number), wish
        self.counts.ended += 1
        self.counts.adapted += wish.params.lora_request is not None
        self.counts.held += wish.params.structured_outputs is not None
        if wish.kind in ("greedy", "held"):
            pinned = min(self.cached.get(output.request_id, 0), len(wish.prompt) - 1)
            assert output.num_cached_tokens >= pinned, "what was pinned has left the cache"

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        # Each token of each sample is computed in one step at worst, if none is computed twice; allow for four times.
        samples = [self.catalogue.wish(number).params.num_sequences for number in self.pending.values()]
        most = 4 * LONGEST * sum(samples) + 50
        most += 4 * len(SHARED) * len(self.pinning)
        while (self.pending or self.pinning) and most:
            self._step()
            self.engine.check_integrity()
            most -= 1
        assert not self.pending, f"requests starve: {self.pending}"
        assert not self.pinning, f"prefixes starve: {self.pinning}"
        assert self.engine.num_waiting == 0
        assert self.engine.num_kv_blocks_used == self.engine.num_kv_blocks_pinned
        for pin in self.pinned:
            self.engine.unpin(pin)
        assert self.engine.num_kv_blocks_used == 0
        self.counts.preemptions += self.engine.metrics.preemptions
        self.counts.from_disk += self.engine.metrics.disk_tokens
        self.counts.drafted += self.engine.metrics.drafts.accepted_tokens


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


def save_recurrent_model(folder: Path) -> Path:
    """With the tiny model's tokenizer."""
    save_tiny_model(folder)
    config = deepcopy(CONFIGS["qwen3_5"])
    config.vocab_size, config.eos_token_id = 258, EOS
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def main(steps: int, seed: int = 0) -> None:
    torch.set_num_threads(1)
    machines = []
    folders = [tempfile.TemporaryDirectory() for _ in range(2)]
    for folder, recurrent in zip(folders, (False, True), strict=True):
        path = (save_recurrent_model if recurrent else save_tiny_model)(Path(folder.name))
        machines.append(machine_on(Catalogue(path, recurrent=recurrent)))
    begin = time.monotonic()
    while machines[0].counts.steps < steps:
        for machine in machines:
            run_machine(machine, 50, seed)
            print(f"{machine.counts}, {time.monotonic() - begin:.0f} s", flush=True)
        seed += 1


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
