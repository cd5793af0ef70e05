"""A journal's lines: what became of a row, and a checksum that tells whether the line is whole."""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """A finished row. result: its result row, a line of JSON without the newline.

    from_other_job: the answer was computed for one. prompt_tokens, output_tokens: of the answer. key: 64 bits of the
    request's cache key, 0 for none. digest: 64 bits of the row's own content.
    """

    index: int
    failed: bool
    from_other_job: bool
    prompt_tokens: int
    output_tokens: int
    key: int
    digest: int
    result: bytes

    def to_line(self) -> bytes:
        head = (
            f"{self.index} {self.failed:d} {self.from_other_job:d} {self.prompt_tokens} {self.output_tokens} "
            f"{self.key:x} {self.digest:x} "
        )
        return with_checksum(head.encode() + self.result)

    @classmethod
    def from_text(cls, text: bytes) -> Record:
        """Of a line without its checksum and newline."""
        index, failed, from_other_job, prompt_tokens, output_tokens, key, digest, result = text.split(b" ", 7)
        return cls(
            int(index), failed == b"1", from_other_job == b"1", int(prompt_tokens), int(output_tokens),
            int(key, 16), int(digest, 16), result,
        )  # fmt: skip


def with_checksum(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def checked(line: bytes) -> bytes | None:
    """The text of a line; None if it is not whole."""
    text = line[9:-1]
    whole = line[8:9] == b" " and line[-1:] == b"\n" and line[:8] == b"%08x" % zlib.crc32(text)
    return text if whole else None
