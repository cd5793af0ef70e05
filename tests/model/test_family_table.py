"""docs/families.md has a line for every family, and what it says is so."""

from __future__ import annotations

from model.families import CONFIGS
from model.family_table import committed, families, line_of, result_of

from pybatch.model.families import FAMILIES

CHOICES = {"num_experts_per_tok", "top_k_experts"}


def test_every_family_is_in_the_table() -> None:
    assert set(committed()) == set(FAMILIES) == set(families())
    assert {family: int(cells[0]) for family, cells in committed().items()} == {
        family: len(names) for family, names in families().items()
    }


def test_all_families_are_equal_there() -> None:
    for family, (_, greedy, difference, int8, bits, _) in committed().items():
        assert (greedy, bits) == ("equal", "equal"), family
        assert float(difference) < 1e-3, family
        chooses = any(CHOICES & CONFIGS[name].to_dict().keys() for name in families()[family])
        assert float(int8) < (0.05 if chooses else 0.02), family  # a router may choose another expert


def test_a_line_is_what_is_measured() -> None:
    cells = line_of("arcee", [result_of("arcee")]).split("|")
    assert [cells[at].strip() for at in (1, 3, 6, 7)] == ["arcee", "equal", "equal", "arcee"]
    assert 0 < float(cells[4]) < 1e-4
    assert 0 < float(cells[5]) < 0.02
