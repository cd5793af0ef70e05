from __future__ import annotations

from pybatch.jobs.failures import FailureTally


def test_failures_are_counted_by_kind_with_the_first_examples() -> None:
    tally = FailureTally()
    tally.add("invalid_json_line", "line 3", "x" * 10_000)
    for i in range(1_000):
        tally.add("invalid_request", f"line {i}", f"temperature: {i}")
    most, fewer = tally
    assert (most.code, most.count, fewer.code, fewer.count) == ("invalid_request", 1_000, "invalid_json_line", 1)
    assert most.examples == [(f"line {i}", f"temperature: {i}") for i in range(FailureTally.EXAMPLES)]
    assert len(fewer.examples[0][1]) == FailureTally.MESSAGE + 1
