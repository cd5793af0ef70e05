"""What `pybatch env` shows: the facts that a bug report should have."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

import pybatch
from pybatch import _C
from pybatch.machine.device import why_no_cuda
from pybatch.machine.memory import free_memory, tightest_limit
from pybatch.machine.threads import usable_cores


def facts() -> dict[str, Any]:
    """Versions, processor, instruction sets, memory and devices, as JSON values. Sizes in bytes."""
    memory, limit = psutil.virtual_memory(), tightest_limit()
    return {
        "pybatch": pybatch.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "isa_possible": _C.possible_isas(),
        "PYBATCH_ISA": os.environ.get("PYBATCH_ISA"),
        **chosen_isa(),
        "compiler": _C.compiler,
        "memory_total": memory.total,
        "memory_available": free_memory(torch.device("cpu")),
        "memory_limit": None if limit is None else limit.size,
        "memory_limited_by": None if limit is None else limit.name,
        "cuda": not why_no_cuda(),
        "cuda_why": why_no_cuda() or torch.cuda.get_device_name(),
    }


def readable(known: Mapping[str, Any]) -> dict[str, str]:
    """The facts as people read them."""
    return {
        name.replace("_", " ") if name.islower() else name: readable_fact(name, value) for name, value in known.items()
    }


def readable_fact(name: str, value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value / 2**30:.1f} GiB" if name.startswith("memory_") and isinstance(value, int) else str(value)


def chosen_isa() -> dict[str, str | None]:
    try:
        return {"isa_chosen": _C.chosen_isa()}
    except ValueError as error:
        return {"isa_chosen": None, "isa_error": str(error)}


def arithmetic(device: torch.device, dtype: torch.dtype) -> str:
    """What the bits of a model's outputs depend on besides the model, its precision and pybatch's version: the GPU, or
    "CPU", with the instruction set where its sums are its own (docs/processors.md). dtype: of activations."""
    if device.type != "cpu":
        return torch.cuda.get_device_name(device)
    isa = _C.chosen_isa()
    its_own = isa == "portable" or (isa == "amx" and dtype == torch.bfloat16)
    return f"CPU, {isa}" if its_own else "CPU"


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return model_in(lines) or platform.processor() or platform.machine()


def model_in(cpuinfo: list[str]) -> str:
    """The processor by its name or, on ARM, where Linux gives none, by its numbers; "" where there are none either."""
    known = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo)}
    if name := known.get("model name") or known.get("cpu model"):
        return name
    numbers = [(name, known.get(f"cpu {name}")) for name in ("implementer", "part", "variant", "revision")]
    return ", ".join(f"{name} {number}" for name, number in numbers if number)
