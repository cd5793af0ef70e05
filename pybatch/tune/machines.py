"""Where a plan is for: a chip by its data sheet, or this machine by a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from pybatch.engine import Engine
from pybatch.engine.arguments import expect_gib
from pybatch.engine.config import DEFAULTS, EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.state_cache import state_layout
from pybatch.machine.cache_folder import cache_folder
from pybatch.machine.facts import facts
from pybatch.machine.memory import free_memory
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder
from pybatch.model.offload import check_offload, choose_layers, device_bytes
from pybatch.model.unweighted import planned_decoder, random_decoder
from pybatch.tune.calibration import FILE, keep, kept_in, measure
from pybatch.tune.chips import Chip, measured_shares
from pybatch.tune.roofline import Roofline, products, step_bytes
from pybatch.tune.step_times import StepShape, StepTimes

RUNTIME = 0.6e9  # bytes that CUDA and the kernels take of a GPU
QUANTIZED = ("int8-weight-only", "int8")
MEASURED = 2e8  # weights, up to which the whole model is measured
FEW, MORE = 2, 6  # layers of a larger one, from whose times those of all layers are told
SECONDS = 8.0  # of each measurement
LENGTH = 4096  # context of the decoder that is measured, at most


class OnChip:
    """Times are a Roofline's. cpu_offload_gb: as the engine's."""

    kv_cache_dtypes = ("auto", "fp8", "int4")
    precisions = ("bfloat16", *QUANTIZED)
    max_num_batched_tokens = DEFAULTS["cuda"]["max_num_batched_tokens"]

    def __init__(self, chip: Chip, cpu_offload_gb: float = 0) -> None:
        expect_gib("cpu_offload_gb", cpu_offload_gb)
        self.chip, self.name = chip, f"{chip.name} ({chip.source})"
        self._offload = cpu_offload_gb

    def decoder(self, model: ModelConfig, precision: str) -> Decoder:
        return planned_decoder(model, torch.bfloat16, precision if precision in QUANTIZED else None)

    def host_bytes(self, decoder: Decoder) -> int:
        return sum(choose_layers(decoder.layers, self._offload).values())

    def cache_bytes(self, decoder: Decoder, max_num_seqs: int) -> int:
        share = DEFAULTS["cuda"]["memory_utilization"]
        steps = step_bytes(decoder, self.max_num_batched_tokens, max_num_seqs)
        weights = device_bytes(decoder.weight_bytes(), choose_layers(decoder.layers, self._offload))
        return int((self.chip.memory - RUNTIME - weights) * share - steps)

    def steps(self, decoder: Decoder, precision: str, config: EngineConfig) -> Roofline:
        return Roofline(
            self.chip,
            measured_shares(),
            decoder,
            precision if precision in QUANTIZED else None,
            kv_layout(decoder, config),
            state_layout(decoder),
            config.kv_cache_dtype,
            self.host_bytes(decoder),
        )


@dataclass(frozen=True, slots=True)
class MeasuredSteps:
    """Step times of a calibration, and which of their costs stand for what. More cannot be told from outside."""

    times: StepTimes

    def seconds(self, shape: StepShape) -> float:
        return self.times.seconds(shape)

    def parts(self, shape: StepShape) -> dict[str, float]:
        step = StepShape(0, 0, 0, 0)
        tokens = replace(shape, sequences=0, context=0)
        return {
            "weights": self.times.seconds(step),
            "arithmetic": self.times.seconds(tokens) - self.times.seconds(step),
            "KV": self.times.seconds(replace(step, context=shape.context)) - self.times.seconds(step),
            "overhead": self.times.seconds(replace(step, sequences=shape.sequences)) - self.times.seconds(step),
        }


class ThisMachine:
    """Times are measured, on a CPU, with random weights: no checkpoint is needed."""

    kv_cache_dtypes = ("auto", "int8", "int4")
    precisions = ("float32", "bfloat16", *QUANTIZED)
    max_num_batched_tokens = DEFAULTS["cpu"]["max_num_batched_tokens"]

    def __init__(self, stored: torch.dtype = torch.bfloat16, cpu_offload_gb: float = 0) -> None:
        """stored: the type of the checkpoint's weights. cpu_offload_gb: as the engine's."""
        check_offload(cpu_offload_gb, "cpu")
        self._stored = stored
        known = facts()
        self.name = f"{known['cpu']}, {torch.get_num_threads()} threads"
        self._facts = {name: known[name] for name in ("pybatch", "torch", "cpu", "physical_cores", "isa_chosen")}
        self._known: dict[str, MeasuredSteps] = {}

    def decoder(self, model: ModelConfig, precision: str) -> Decoder:
        return planned_decoder(model, dtype_of(precision), precision if precision in QUANTIZED else None, self._stored)

    def host_bytes(self, decoder: Decoder) -> int:
        return 0

    def cache_bytes(self, decoder: Decoder, max_num_seqs: int) -> int:
        free = free_memory(torch.device("cpu")) - decoder.weight_bytes()
        steps = step_bytes(decoder, self.max_num_batched_tokens, max_num_seqs)
        return int(free * DEFAULTS["cpu"]["memory_utilization"] - steps)

    def steps(self, decoder: Decoder, precision: str, config: EngineConfig) -> MeasuredSteps:
        key = {
            "shape": repr(decoder.config),
            "stored": str(self._stored),
            "precision": precision,
            "kv_cache_dtype": config.kv_cache_dtype,
            "block_size": config.block_size,
            "threads": torch.get_num_threads(),
            **self._facts,
        }
        if (known := self._known.get(repr(key))) is None:
            known = self._known[repr(key)] = MeasuredSteps(self._measured(key, decoder, precision, config))
        return known

    def _measured(self, key: Mapping[str, Any], decoder: Decoder, precision: str, config: EngineConfig) -> StepTimes:
        """Those that were kept, or else measured now and kept."""
        folder = cache_folder()
        times = None if folder is None else kept_in(folder / FILE, key)
        if times is None:
            times = measured(decoder.config, precision, config.kv_cache_dtype, self._stored)
            if folder is not None:
                with suppress(OSError):
                    keep(folder / FILE, key, times)
        return times


def measured(model: ModelConfig, precision: str, kv_cache_dtype: str, stored: torch.dtype) -> StepTimes:
    """Of a model with random weights; of a large one two cuts are measured, with few layers each."""
    shares_kv = any(getattr(layer.mixer, "kv_of", None) is not None for layer in model.layers)
    if sum(tensor_weights(model)) <= MEASURED or model.num_layers <= MORE or shares_kv:
        return times_of(model, precision, kv_cache_dtype, stored)
    few, more = (times_of(cut(model, layers), precision, kv_cache_dtype, stored) for layers in (FEW, MORE))
    times = (model.num_layers - FEW) / (MORE - FEW)
    costs = zip(few.coefficients, more.coefficients, strict=True)
    return StepTimes([max(0.0, low + times * (high - low)) for low, high in costs], max(few.error, more.error))


def dtype_of(precision: str) -> torch.dtype:
    """Of the activations on a CPU."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def tensor_weights(model: ModelConfig) -> Sequence[int]:
    """Of the layers' projections."""
    return [each.weights for each in products(planned_decoder(model, torch.float32, None))]


def cut(model: ModelConfig, layers: int) -> ModelConfig:
    """With so many of its layers, evenly spaced, and one of attention among them."""
    chosen = [model.layers[(2 * i + 1) * model.num_layers // (2 * layers)] for i in range(layers)]
    if not any(layer.mixer in model.attentions for layer in chosen):
        chosen[-1] = next(layer for layer in model.layers if layer.mixer in model.attentions)
    return replace(model, layers=tuple(chosen))


def times_of(model: ModelConfig, precision: str, kv_cache_dtype: str, stored: torch.dtype) -> StepTimes:
    length = min(LENGTH, model.plain_context)
    quantization = precision if precision in QUANTIZED else None
    decoder = random_decoder(model, dtype_of(precision), quantization, torch.device("cpu"), length, stored)
    config = EngineConfig(kv_cache_dtype=kv_cache_dtype, max_model_len=length)  # type: ignore[arg-type]
    return measure(Engine(decoder, None, config), SECONDS)
