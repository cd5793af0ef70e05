from __future__ import annotations

from pybatch.machine.facts import cpu_model, model_in


def test_a_processor_is_known_by_its_name_or_by_arms_numbers() -> None:
    x86 = ["processor\t: 0", "vendor_id\t: AuthenticAMD", "model\t\t: 17", "model name\t: AMD EPYC 9R14"]
    arm = ["CPU implementer\t: 0x41", "CPU variant\t: 0x3", "CPU part\t: 0xd0c", "CPU revision\t: 1", ""]
    assert model_in([*x86, "", *x86]) == "AMD EPYC 9R14"
    assert model_in(arm) == "implementer 0x41, part 0xd0c, variant 0x3, revision 1"
    assert model_in([]) == ""
    assert cpu_model()
