"""Shared memory has 32 banks of four bytes: eight lanes with sixteen bytes each meet in none if they take eight of its
eight columns. The layer has no banks, so it is shown of the functions that say where things lie."""

from __future__ import annotations

import pytest

from simt import compile

CONFLICTS = """
#include "cuda/matmul_ops.cuh"
using namespace pybatch::cuda;

template <class Place>
constexpr bool meet_in_no_bank(const Place& place) {
  for (int first = 0; first < kWarp; first += 8) {
    unsigned columns = 0;
    for (int lane = first; lane < first + 8; ++lane) columns |= 1u << place(lane) % 8;
    if (columns != 0xff) return false;
  }
  return true;
}
template <class Weights, int kGroups>
constexpr bool groups_meet_in_no_bank() {
  for (int i = 0; i < kGroups; ++i) {
    if (!meet_in_no_bank([&](int lane) { return Weights::place_of_group(i, lane); })) return false;
  }
  return meet_in_no_bank([](int lane) { return Weights::place(lane); });
}
"""


@pytest.mark.parametrize(
    ("weights", "groups"), [("WidenedWeights<f16, int8_t>", 2), ("DenseWeights<f16>", 4), ("Int8Weights", 4)]
)
def test_packed_weights_are_copied_and_loaded_without_bank_conflicts(weights: str, groups: int) -> None:
    compile.check(weights, f"{CONFLICTS} static_assert(groups_meet_in_no_bank<{weights}, {groups}>());")


def test_a_conflict_is_seen() -> None:
    with pytest.raises(RuntimeError, match="static assertion"):
        compile.check(
            "", f"{CONFLICTS} static_assert(meet_in_no_bank([](int lane) {{ return lane / 4 + lane % 4 * 8; }}));"
        )
