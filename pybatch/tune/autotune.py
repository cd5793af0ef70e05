"""Settings that suit this machine and model, found by measuring steps for some seconds, and kept.

What a step brings a second rises with the tokens in it until the machine is saturated, so each setting is the smallest
from which on more brings hardly anything: a larger batch only makes each request slower.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import torch

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.state_cache import state_layout
from pybatch.engine.speculative_config import SpeculativeConfig
from pybatch.machine.cache_folder import cache_folder
from pybatch.machine.facts import facts
from pybatch.machine.memory import free_memory
from pybatch.machine.threads import usable_cores
from pybatch.model.decoder import Decoder
from pybatch.tune.kept import find_kept, keep

SECONDS = 8.0  # of measuring; engines are made besides
FILE = "tuned.json"
MEMORY_SHARE = 0.25  # of the memory that is free, for the KV cache of the measurement
ENOUGH = 0.98  # of the most tokens a second
LARGEST = {"cpu": (256, 2048), "cuda": (1024, 16384)}  # that are tried: sequences, and tokens of a step
PROMPT = 64  # tokens of the prompts in a step
SHARED = 32  # tokens with which those begin that decode, so that they are computed once
REPEATS, FEWEST = 6, 2  # steps of a kind; of slow ones fewer
OUTPUTS = 16  # tokens that a sequence would decode
CHEAP = 0.5  # of the time of a batch's tokens, that as many more may take for drafts to be worth a try
DRAFTS = {"method": "suffix"}  # each step takes as many as pay

Clock = Callable[[], float]
Try = tuple[float, float]  # tokens in a step, and its seconds


@dataclass(frozen=True, slots=True)
class Tuned:
    """threads, speculative_config: None: as they are. why: by setting."""

    max_num_seqs: int
    max_num_batched_tokens: int
    threads: int | None
    speculative_config: str | None
    why: Mapping[str, str]
    seconds: float  # that it took

    SETTINGS = ("max_num_seqs", "max_num_batched_tokens", "threads", "speculative_config")

    def settings(self) -> dict[str, Any]:
        """What was chosen, by argument."""
        return {name: value for name in self.SETTINGS if name in self.why and (value := getattr(self, name))}

    def __str__(self) -> str:
        chosen = self.settings()
        return "Tuned: " + "; ".join(f"{name} {chosen.get(name, 'as it is')} ({why})" for name, why in self.why.items())

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """Raises KeyError and TypeError for what was not kept by this version."""
        return cls(**{field.name: kept[field.name] for field in fields(cls)})


def tuned(decoder: Decoder, config: EngineConfig, threads: int | None) -> Tuned:
    """For what config and threads leave open: what was kept for this machine, model and version, or else is measured
    now, in ten seconds at most, and kept in the user's cache folder where that can be written. Sets torch's threads."""
    folder, key = cache_folder(), key_of(decoder, config, threads)
    found = None
    if folder is not None and (kept := find_kept(folder / FILE, key)) is not None:
        with suppress(KeyError, TypeError):
            found = Tuned.of(kept)
    if found is None:
        found = Tuning(decoder, config, threads).run()
        if folder is not None:
            with suppress(OSError):
                keep(folder / FILE, key, asdict(found))
    if found.threads is not None:
        torch.set_num_threads(found.threads)
    return found


def key_of(decoder: Decoder, config: EngineConfig, threads: int | None) -> dict[str, Any]:
    """Everything that it depends on: of the model its shape, not its weights."""
    known = facts()
    of_machine = ("pybatch", "torch", "cpu", "physical_cores", "usable_cores", "isa_chosen")
    given = ("max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_dtype", "speculative_config", "policy")
    return {
        "shape": repr(decoder.config),
        "weight_bytes": decoder.weight_bytes(),
        "dtype": str(decoder.dtype),
        "gpu": torch.cuda.get_device_name(decoder.device) if decoder.device.type == "cuda" else None,
        "threads": threads,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        **{name: known[name] for name in of_machine},
        **{name: getattr(config, name) for name in given},
    }


class Tuning:
    """Runs steps of random tokens on engines of its own, until all is known or the time is over."""

    def __init__(
        self,
        decoder: Decoder,
        config: EngineConfig,
        threads: int | None,
        seconds: float = SECONDS,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._begin = clock()
        self._clock, self._seconds = clock, seconds
        self._decoder, self._given, self._threads = decoder, config, threads
        self._why: dict[str, str] = {}
        self._random = random.Random(0)
        most_seqs, most_tokens = LARGEST[decoder.device.type]
        self._most_seqs = 2 * config.max_num_seqs if config.max_num_seqs else most_seqs
        self._most_tokens = max(config.max_num_batched_tokens or most_tokens, self._most_seqs)

    def run(self) -> Tuned:
        engine = self._engine()
        threads = self._find_threads(engine)
        seqs, decodes = self._find_sequences(engine)
        tokens = self._find_tokens(engine, seqs)
        speculation = self._find_speculation(seqs, decodes)
        return Tuned(seqs, tokens, threads, speculation, self._why, self._clock() - self._begin)

    # ---- the settings ----

    def _find_threads(self, engine: Engine) -> int | None:
        """Those of the cores, unless fewer, or those of the processors, are faster."""
        if self._threads is not None or os.environ.get("OMP_NUM_THREADS") or self._decoder.device.type != "cpu":
            return None
        cores = usable_cores()
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
        choices = sorted({max(1, cores // 2), cores, allowed}, key=lambda count: (count != cores, count))
        if len(choices) == 1:
            return None
        seconds: dict[int, float] = {}
        for count in choices:
            torch.set_num_threads(count)
            if seconds and self._left(0.8) < 3 * min(seconds.values()):
                break
            decodes, prompts = self._decode(engine, min(8, self._most_seqs)), self._prefill(engine, 1)
            seconds[count] = decodes + prompts
        best = min(seconds, key=lambda count: seconds[count] * (ENOUGH if count == cores else 1.0))
        torch.set_num_threads(best)
        told = ", ".join(f"{count}: {1e3 * each:.3g} ms" for count, each in sorted(seconds.items()))
        self._why["threads"] = f"a step of 8 sequences and one of a prompt by threads: {told}"
        return best

    def _find_sequences(self, engine: Engine) -> tuple[int, list[Try]]:
        if self._given.max_num_seqs is not None:
            seqs = self._given.max_num_seqs
            return seqs, [(count, self._decode(engine, count)) for count in (seqs, 2 * seqs)]
        tries, over = self._ladder(1, self._most_seqs, lambda count: self._decode(engine, count), 0.45)
        default = EngineConfig().on(self._decoder.device.type).max_num_seqs
        chosen = self._choose("max_num_seqs", "decoding", tries, default if over else 0)
        return chosen, tries

    def _find_tokens(self, engine: Engine, seqs: int) -> int:
        """A step's budget is for the tokens that decode and for those of prompts."""
        if self._given.max_num_batched_tokens is not None:
            return self._given.max_num_batched_tokens
        most = max(1, self._most_tokens // PROMPT)
        tries, over = self._ladder(1, most, lambda prompts: self._prefill(engine, prompts), 0.8)
        tries = [(prompts * PROMPT, seconds) for prompts, seconds in tries]
        default = EngineConfig().on(self._decoder.device.type).max_num_batched_tokens
        chosen = self._choose("max_num_batched_tokens", "prompts", tries, default if over else 0)
        return -(-(chosen + seqs) // PROMPT) * PROMPT

    def _find_speculation(self, seqs: int, decodes: Sequence[Try]) -> str | None:
        """Drafts pay where a step takes more tokens at little cost: not where the batch saturates the machine."""
        if self._given.speculative_config is not None or self._decoder.device.type != "cpu":
            return None
        if state_layout(self._decoder) is not None or not self._decoder.config.generates:
            return None
        seconds = dict(decodes)
        if not {seqs, 2 * seqs} <= seconds.keys():
            self._why["speculative_config"] = f"batches of {seqs} and twice as many were not measured: no drafts"
            return None
        more = seconds[2 * seqs] / seconds[seqs] - 1
        pays = more < CHEAP
        known = f"a second token of each takes {more:.0%} of the time of the first"
        self._why["speculative_config"] = f"in a batch of {seqs} {known}: drafts " + (
            "may pay" if pays else "do not pay"
        )
        return SpeculativeConfig.of(DRAFTS).text if pays else None

    def _ladder(self, low: int, high: int, measure: Callable[[int], float], share: float) -> tuple[list[Try], bool]:
        """Twice as much each time, until that brings nothing twice, or the time up to that share is over, which is told
        besides."""
        tries: list[Try] = []
        number, stale = low, 0
        while True:
            tries.append((number, measure(number)))
            rates = [count / seconds for count, seconds in tries]
            stale = stale + 1 if len(rates) > 1 and rates[-1] < max(rates[:-1]) * (2 - ENOUGH) else 0
            if number == high or stale == 2:
                return tries, False
            if self._left(share) < 3 * (FEWEST + 1) * tries[-1][1]:
                return tries, True
            number = min(2 * number, high)

    def _choose(self, name: str, what: str, tries: Sequence[Try], default: float) -> int:
        rates = {count: count / seconds for count, seconds in tries}
        most = max(rates.values())
        best = next(count for count, rate in rates.items() if rate >= ENOUGH * most)
        told = ", ".join(f"{count:g}: {rate:,.0f}" for count, rate in rates.items())
        rising = best == list(rates)[-1]
        self._why[name] = f"tokens a second of {what}: {told}" + ("; no time for more" if default and rising else "")
        return int(max(best, default) if rising else best)

    # ---- steps ----

    def _left(self, share: float) -> float:
        return self._begin + share * self._seconds - self._clock()

    def _engine(self) -> Engine:
        size = self._given.block_size
        wanted = self._most_seqs * 4 + 2 * -(-self._most_tokens // PROMPT) * -(-PROMPT // size)
        config = EngineConfig(
            max_num_seqs=max(self._most_seqs, self._most_tokens // PROMPT),
            max_num_batched_tokens=self._most_tokens,
            num_kv_blocks=wanted,
            block_size=size,
            kv_cache_dtype=self._given.kv_cache_dtype,
            predict_lengths=False,
        )
        room = int(free_memory(self._decoder.device) * MEMORY_SHARE) // kv_layout(self._decoder, config).block_bytes
        return Engine(self._decoder, None, replace(config, num_kv_blocks=max(16, min(wanted, room))))

    def _decode(self, engine: Engine, sequences: int) -> float:
        """Seconds of a step of so many sequences, behind a beginning that they share. Infinite where the KV pool has no
        room for them."""
        shared = [self._token() for _ in range(max(SHARED, engine.config.block_size))]
        first = self._add(engine, [[*shared, 0]], 2)
        self._step(engine)
        self._abort(engine, first)
        names = self._add(engine, [[*shared, self._token()] for _ in range(sequences)], OUTPUTS)
        for _ in range(OUTPUTS - REPEATS - 1):
            self._step(engine)
            known = [engine.metrics_of(name) for name in names]
            if all(each is not None and each.num_output_tokens for each in known):
                self._step(engine)  # records the graph
                return self._fastest(engine, names)
        self._abort(engine, names)
        return math.inf

    def _prefill(self, engine: Engine, prompts: int) -> float:
        """Seconds of a step of so many prompts."""
        found = math.inf
        for _ in range(FEWEST):
            names = self._add(engine, [[self._token() for _ in range(PROMPT)] for _ in range(prompts)], 2)
            found = min(found, self._step(engine))
            self._abort(engine, names)
            if self._left(0.9) < 2 * found:
                break
        return found

    def _fastest(self, engine: Engine, names: Sequence[str]) -> float:
        """What else the machine does only ever adds to a time."""
        found = math.inf
        for number in range(REPEATS):
            found = min(found, self._step(engine))
            if number + 1 >= FEWEST and found * number > 0.05 * self._seconds:
                break
        self._abort(engine, names)
        return found

    def _add(self, engine: Engine, prompts: Sequence[list[int]], outputs: int) -> list[str]:
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=outputs, detokenize=False)
        names = [f"tune-{number}" for number in range(len(prompts))]
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, prompt, params)
        return names

    def _abort(self, engine: Engine, names: Sequence[str]) -> None:
        for name in names:
            engine.abort(name)

    def _step(self, engine: Engine) -> float:
        begin = self._clock()
        engine.step()
        return self._clock() - begin

    def _token(self) -> int:
        return self._random.randrange(self._decoder.config.vocab_size)
