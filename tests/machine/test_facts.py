from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pybatch.machine import facts
from pybatch.machine.facts import arithmetic, cpu_model, model_in


def test_a_processor_is_known_by_its_name_or_by_arms_numbers() -> None:
    x86 = ["processor\t: 0", "vendor_id\t: AuthenticAMD", "model\t\t: 17", "model name\t: AMD EPYC 9R14"]
    arm = ["CPU implementer\t: 0x41", "CPU variant\t: 0x3", "CPU part\t: 0xd0c", "CPU revision\t: 1", ""]
    assert model_in([*x86, "", *x86]) == "AMD EPYC 9R14"
    assert model_in(arm) == "implementer 0x41, part 0xd0c, variant 0x3, revision 1"
    assert model_in([]) == ""
    assert cpu_model()


@pytest.mark.parametrize(
    ("isa", "dtype", "expected"),
    [
        ("amx", torch.bfloat16, "CPU, amx"),
        ("amx", torch.float32, "CPU"),
        ("avx2", torch.bfloat16, "CPU"),
        ("portable", torch.float32, "CPU, portable"),
    ],
)
def test_instruction_sets_with_bits_of_their_own_are_told_apart(
    isa: str, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_C", SimpleNamespace(chosen_isa=lambda: isa))
    assert arithmetic(torch.device("cpu"), dtype) == expected
