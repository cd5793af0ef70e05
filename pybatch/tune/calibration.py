"""Measures in some seconds how long this machine takes for a step of this model, and keeps what it found."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pybatch.engine import Engine, SamplingParams
from pybatch.engine.pooling_params import Params, PoolingParams
from pybatch.engine.scheduling.step import Chunk
from pybatch.machine.cache_folder import cache_folder
from pybatch.machine.facts import facts
from pybatch.machine.memory import free_memory
from pybatch.tune.kept import find_kept
from pybatch.tune.kept import keep as keep_fields
from pybatch.tune.step_times import StepShape, StepTimes

SECONDS = 9.0
ROUNDS = 2  # of phases, each with as much of the time: what runs first finds memory untouched, and caches cold
BATCHES = (12, 16, 24, 32, 48, 64)  # that decode: beside the knots of StepTimes, and between them
MEMORY_SHARE = 0.25  # of the memory that is free, for the KV cache of the measurement
FILE = "calibration.json"

NO_MATTER = {  # settings that a step's time does not depend on
    *("model", "tokenizer", "skip_tokenizer_init", "generation_config", "seed"),
    *("max_model_len", "memory_utilization", "num_kv_blocks", "policy"),
    "weights_cache_dir",
    "adapter",  # is merged
    *("threads", "tune"),  # what came of them counts
}


def calibrated(engine: Engine, model: str) -> StepTimes:
    """The step times of this engine on this machine: those that were kept, or else measured now, in ten seconds at
    most, and kept in the user's cache folder where that can be written.

    model: its fingerprint. The engine's requests, prefix cache and metrics are left alone; no other thread may run it
    meanwhile.
    """
    folder = cache_folder()
    key = key_of(engine, model)
    times = None if folder is None else kept_in(folder / FILE, key)
    if times is None:
        times = measure(engine)
        if folder is not None:
            with suppress(OSError):
                keep(folder / FILE, key, times)
    return times


def key_of(engine: Engine, model: str) -> dict[str, Any]:
    """Everything that a step's time depends on."""
    known, device = facts(), engine.decoder.device
    of_machine = ("pybatch", "torch", "cpu", "physical_cores", "usable_cores", "isa_chosen")
    settings = {field.name: getattr(engine.config, field.name) for field in fields(engine.config)}
    return {
        "model": model,
        **{name: known[name] for name in of_machine},
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        **{name: value for name, value in settings.items() if name not in NO_MATTER},
    }


def kept_in(path: Path, key: Mapping[str, Any]) -> StepTimes | None:
    with suppress(ValueError, KeyError):
        return StepTimes.from_json((find_kept(path, key) or {})["step_times"])
    return None


def keep(path: Path, key: Mapping[str, Any], times: StepTimes) -> None:
    """Raises OSError if it cannot be written."""
    keep_fields(path, key, {"step_times": times.to_json()})


# ---- the measurement ----


@dataclass(frozen=True, slots=True)
class Phase:
    """So many prompts of random tokens at once, and so many tokens of output for each."""

    sequences: int
    prompt: int
    outputs: int

    def blocks(self, block_size: int) -> int:
        """With those that the scheduler keeps spare."""
        return self.sequences * (-(-(self.prompt + self.outputs) // block_size) + 2)


def phases(engine: Engine) -> list[Phase]:
    """One sequence and many, short prompts and long ones; what costs least comes first. Where prompts take several
    steps, the outputs last until all of them decode."""
    config = engine.config
    chunk, most = config.max_num_batched_tokens, min(config.max_num_seqs, config.max_num_batched_tokens)
    few, longest = min(8, most), engine.max_model_len
    wanted = [Phase(1, 1, 3), Phase(1, 8, 3), Phase(1, 32, 3), Phase(few, 8, 6), Phase(1, 128, 3)]
    wanted += [Phase(count, 4, 4 + 4 * count // chunk) for count in (2, 4, *BATCHES, most) if count <= most]
    wanted += [Phase(4, prompt, 4 + 4 * prompt // chunk) for prompt in (64, 256) if most >= 4]
    wanted += [Phase(1, chunk, 3), Phase(few, 256, 4 + 256 * few // chunk), Phase(1, 1024, 4)]
    return list(dict.fromkeys(each for each in wanted if each.prompt + each.outputs <= longest)) or [Phase(1, 1, 1)]


class MeasuredEngine(Engine):
    """Notes what its last step computed."""

    shape: StepShape | None = None

    def _schedule(self) -> list[Chunk]:
        chunks = super()._schedule()
        self.shape = StepShape.of(chunks)
        return chunks


class Measurement:
    """Runs phases on an engine of its own, with the weights of the given one and a small KV pool."""

    def __init__(self, engine: Engine, seconds: float, clock: Callable[[], float]) -> None:
        self._clock, self._begin, self._seconds = clock, clock(), seconds
        self._deadline = self._begin
        self._phases = phases(engine)
        self._engine = self._beside(engine)
        self._vocab = engine.decoder.config.vocab_size
        self._random = random.Random(0)
        self._steps: dict[tuple[Phase, int], list[tuple[float, StepShape]]] = {}
        self._token_seconds = 0.0  # at most, in a step of more tokens than any so far
        self._step_seconds = 0.0  # of a step of one token
        self._largest = 0  # step so far, in tokens

    def _beside(self, engine: Engine) -> MeasuredEngine:
        block = engine.kv_block_bytes
        room = int(free_memory(engine.decoder.device) * MEMORY_SHARE) // block
        wanted = max(each.blocks(engine.config.block_size) for each in self._phases)
        blocks = max(1, min(wanted, room, engine.num_kv_blocks))
        config = replace(
            engine.config, num_kv_blocks=blocks, max_model_len=None, policy="continuous", prefix_cache_dir=None
        )
        return MeasuredEngine(engine.decoder, None, config)

    def run(self) -> StepTimes:
        for number in range(1, ROUNDS + 1):
            self._deadline = self._begin + self._seconds * number / ROUNDS
            for phase in self._phases:
                if not self._steps or self._may_run(phase):
                    self._run(phase)
        # The median: a run has slow steps too, and one that the machine was busy in counts for no more than another. Of
        # two the faster: the other was the first of its kind.
        usual = [sorted(steps, key=lambda step: step[0])[(len(steps) - 1) // 2] for steps in self._steps.values()]
        return StepTimes.fit([shape for _, shape in usual], [seconds for seconds, _ in usual])

    def _may_run(self, phase: Phase) -> bool:
        fits = phase.blocks(self._engine.config.block_size) <= self._engine.num_kv_blocks
        return fits and self._clock() + self._most_seconds(phase) <= self._deadline

    def _most_seconds(self, phase: Phase) -> float:
        """A bound, since the time of a token does not grow with the tokens in a step, attention aside."""
        decodes = phase.outputs * max(self._step_seconds, phase.sequences * self._token_seconds)
        return phase.sequences * phase.prompt * self._token_seconds + decodes

    def _run(self, phase: Phase) -> None:
        engine = self._engine
        params: Params = PoolingParams()
        if engine.decoder.config.generates:
            params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=phase.outputs, detokenize=False)
        for i in range(phase.sequences):
            engine.add_request(str(i), [self._random.randrange(self._vocab) for _ in range(phase.prompt)], params)
        for number in self._numbers():
            before = self._clock()
            engine.step()
            self._note(phase, number, self._clock() - before)
        for i in range(phase.sequences):
            engine.abort(str(i))

    def _numbers(self) -> Iterator[int]:
        """Of the steps, until all is done or the time is over."""
        number = 0
        while self._engine.has_unfinished() and (number == 0 or self._clock() < self._deadline):
            yield number
            number += 1

    def _note(self, phase: Phase, number: int, seconds: float) -> None:
        shape = self._engine.shape
        assert shape is not None
        if shape.tokens >= self._largest:
            self._largest, self._token_seconds = shape.tokens, seconds / shape.tokens
        if shape.tokens == 1:
            self._step_seconds = seconds
        step = number if shape.pairs else -1  # steps that only decode are alike
        self._steps.setdefault((phase, step), []).append((seconds, shape))


def measure(engine: Engine, seconds: float = SECONDS, clock: Callable[[], float] = time.perf_counter) -> StepTimes:
    """Runs prompts of random tokens for at most so many seconds, as far as single steps allow it. On a slow machine
    fewer kinds of steps are measured."""
    return Measurement(engine, seconds, clock).run()
