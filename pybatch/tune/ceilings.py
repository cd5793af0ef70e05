"""What this machine can do at most, measured: bytes and operations a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.state_cache import state_layout
from pybatch.model.decoder import Decoder
from pybatch.tune.chips import Chip, MatmulShares, Shares
from pybatch.tune.roofline import Roofline

COPIED, SIDE, REPEATS = 1 << 28, 1024, 5  # bytes, and rows and columns, of what measures the ceilings


@dataclass(frozen=True, slots=True)
class Ceilings:
    """bandwidth: bytes a second that a copy reads and writes. arithmetic: operations a second of torch's product of two
    float32 matrices, on a GPU of bfloat16. int8: of two int8 matrices; arithmetic's where torch has none."""

    bandwidth: float
    arithmetic: float
    int8: float

    @classmethod
    def measured(cls, device: torch.device) -> Ceilings:
        def best(call: Callable[[], object]) -> float:
            times = []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begin)
            return min(times)

        source = torch.ones(COPIED, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        matrix = torch.ones(SIDE, SIDE, dtype=dtype, device=device)
        arithmetic = int8 = 2 * SIDE**3 / best(lambda: matrix @ matrix)
        small = matrix.to(torch.int8)
        with suppress(RuntimeError, AttributeError):
            int8 = max(int8, 2 * SIDE**3 / best(lambda: torch._int_mm(small, small)))
        return cls(2 * COPIED / best(lambda: target.copy_(source)), arithmetic, int8)

    def roofline(self, decoder: Decoder, quantization: str | None, config: EngineConfig) -> Roofline:
        """What the bytes and operations of a step take at the ceilings. GGUF's blocks are multiplied as int8."""
        kernel = "int8" if quantization == "gguf" else quantization
        most = MatmulShares(0.0, 1.0, 1.0)
        matmuls = {"dense": most, "w8a16": most, "w8a8": MatmulShares(0.0, 1.0, 2.0)}
        shares = Shares("", "", 1.0, 1.0, matmuls, {"bfloat16": 1.0}, 1.0, 0.0)
        chip = Chip("this machine", 0, self.bandwidth, self.arithmetic, self.int8, 0, 0, "measured")
        layout = kv_layout(decoder, config)
        return Roofline(chip, shares, decoder, kernel, layout, state_layout(decoder), config.kv_cache_dtype)
