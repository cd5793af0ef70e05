"""Files in multipart bodies, written to the disk as they come."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pybatch.api.protocols.request_error import RequestError
from pybatch.serve.store.files import Upload

AT_ONCE = 1 << 20  # bytes that are collected before a thread writes them
MOST_TEXT = 1 << 16  # bytes of another field
MOST_PARTS = 16


@dataclass
class Form:
    """fields: the form's other fields. filename: None if there was no file."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


async def receive(request: Request, upload: Upload, name: str) -> Form:
    """Reads a multipart body, of which the part of the name goes to the upload, in bounded memory.

    Raises RequestError for a body that is something else, OSError if it cannot be written.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError("body: expected multipart/form-data", "invalid_type", "body")
    reader = FormReader(name, options[b"boundary"])
    try:
        async for chunk in request.stream():
            if chunk:
                reader.parser.write(chunk)
            if len(reader.ready) > AT_ONCE:
                await asyncio.to_thread(upload.write, reader.take())
        reader.parser.finalize()
        if not reader.ended:  # which finalize does not mind
            raise FormParserError("it ends before its last boundary")
    except FormParserError as error:
        raise RequestError(f"body: expected multipart/form-data: {error}", "invalid_value", "body") from None
    await asyncio.to_thread(upload.write, reader.take())
    return reader.form


class FormReader:
    """ready: bytes of the file that have not been taken. ended: whether the form's last boundary has come."""

    def __init__(self, name: str, boundary: bytes) -> None:
        self.form, self.ready = Form(), bytearray()
        self._file = name
        self._part, self._header, self._value, self._text = "", b"", b"", b""
        self._is_file = False
        self._parts = 0
        self.ended = False
        callbacks: Any = {
            "on_part_begin": self._part_begins,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_ends,
            "on_part_data": self._data,
            "on_part_end": self._part_ends,
            "on_end": self._ends,
        }
        self.parser = MultipartParser(boundary, callbacks)

    def take(self) -> bytes:
        taken = bytes(self.ready)
        self.ready.clear()
        return taken

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise RequestError(f"body: expected at most {MOST_PARTS} parts", "invalid_value", "body")
        self._part, self._header, self._value, self._text, self._is_file = "", b"", b"", b"", False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._part = options.get(b"name", b"").decode(errors="replace")
            self._is_file = self._part == self._file and self.form.filename is None
            if self._is_file:
                self.form.filename = options.get(b"filename", b"upload").decode(errors="replace")
        self._header, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.ready += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > MOST_TEXT:
            raise RequestError(f"{self._part:.80}: longer than {MOST_TEXT:,} bytes", "invalid_value", self._part)

    def _part_ends(self) -> None:
        if not self._is_file:
            self.form.fields[self._part] = self._text.decode(errors="replace")

    def _ends(self) -> None:
        self.ended = True
