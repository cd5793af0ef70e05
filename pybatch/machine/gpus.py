"""How busy the GPUs are, by NVIDIA's management library (NVML)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """None: the GPU does not tell."""

    index: int
    name: str
    memory_total: int | None  # bytes
    memory_used: int | None
    utilization: float | None  # the fraction of the last second or less in which a kernel ran
    power: float | None  # watts
    power_limit: float | None
    energy: float | None  # joules since the driver was loaded
    temperature: float | None  # degrees Celsius


def gpu_loads() -> list[GpuLoad]:
    """One for each GPU; empty where there is no driver or the package nvidia-ml-py is missing."""
    nvml = opened()
    if nvml is None:
        return []
    return [load(nvml, index) for index in range(told(nvml, nvml.nvmlDeviceGetCount) or 0)]


@functools.cache
def opened() -> Any:
    """The library, or None. Opening it takes long where there are many GPUs."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def load(nvml: Any, index: int) -> GpuLoad:
    device = told(nvml, nvml.nvmlDeviceGetHandleByIndex, index)

    def ask(name: str, *arguments: Any) -> Any:
        return None if device is None else told(nvml, getattr(nvml, name), device, *arguments)

    def thousandth(name: str) -> float | None:
        value = ask(name)
        return None if value is None else value / 1000

    name = ask("nvmlDeviceGetName") or f"GPU {index}"
    memory, rates = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetUtilizationRates")
    return GpuLoad(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        memory_total=None if memory is None else int(memory.total),
        memory_used=None if memory is None else int(memory.used),
        utilization=None if rates is None else rates.gpu / 100,
        power=thousandth("nvmlDeviceGetPowerUsage"),
        power_limit=thousandth("nvmlDeviceGetEnforcedPowerLimit"),
        energy=thousandth("nvmlDeviceGetTotalEnergyConsumption"),
        temperature=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
    )


def told(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """None where this GPU, or its driver, does not know."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None
