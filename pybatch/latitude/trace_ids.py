"""Which trace is which row's: the same in every run of a job, so that it can be scored later."""

from __future__ import annotations

from hashlib import blake2b


def trace_number(job: str, row: int) -> int:
    """job: of the job, the same in all its runs. row: its number from 0."""
    return int.from_bytes(blake2b(f"{job} {row}".encode(), digest_size=16).digest(), "big") or 1  # 0 is no id


def trace_id(job: str, row: int) -> str:
    """As Latitude writes it: 32 hexadecimal digits."""
    return f"{trace_number(job, row):032x}"
