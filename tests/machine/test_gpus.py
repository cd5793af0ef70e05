from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pybatch.machine import gpus


class Library:
    """NVIDIA's library on a machine with one GPU that does not tell its energy: tests run where there is none."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def __getattr__(self, name: str) -> object:
        answers = {
            "nvmlDeviceGetHandleByIndex": object(),
            "nvmlDeviceGetName": b"NVIDIA H100",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 << 30, used=1 << 30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=37),
            "nvmlDeviceGetPowerUsage": 123_456,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetTemperature": 61,
        }

        def ask(*arguments: object) -> object:
            if name not in answers:
                raise self.NVMLError(name)
            return answers[name]

        return ask


def test_units_and_what_a_gpu_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "opened", Library)
    (gpu,) = gpus.gpu_loads()
    assert (gpu.name, gpu.memory_total, gpu.memory_used) == ("NVIDIA H100", 80 << 30, 1 << 30)
    assert (gpu.utilization, gpu.power, gpu.power_limit) == (0.37, 123.456, 700.0)
    assert (gpu.energy, gpu.temperature) == (None, 61)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_no_driver_is_no_gpu() -> None:
    assert gpus.gpu_loads() == []
