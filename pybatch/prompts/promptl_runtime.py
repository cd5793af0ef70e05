"""PromptL's own compiler, a WebAssembly module that the package promptl-ai brings, called in batches.

A call for one row takes 19 ms, and 1.1 ms a row where 200 share it.
"""

from __future__ import annotations

import atexit
import functools
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pybatch.prompts.errors import PromptError, Text

if TYPE_CHECKING:
    from promptl_ai.rpc import Client

BATCH = 200  # calls at once

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """What PromptL says against a prompt, or one row. start: the character of the text at fault, where it is known."""

    message: str
    start: int | None = None

    def error(self, text: Text) -> PromptError:
        if self.start is None:
            return PromptError(self.message, file=text.file)
        return text.error(self.message, min(self.start, len(text.text)))

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Fault:
        start = details.get("startIndex")
        if start is not None and details.get("code") == "unexpected-tag-close":
            start += 1  # which it gives one too low
        return cls(str(details.get("message", "")).strip().partition("\n")[0], start)


class Runtime:
    """Calls procedures of the module, from one thread at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()

    def call(self, procedure: str, calls: Sequence[Parameters]) -> list[Any | Fault]:
        """The procedure's value for each; procedure: scanPrompt, renderPrompt, createChain or stepChain."""
        values: list[Any | Fault] = []
        for start in range(0, len(calls), BATCH):
            values += self._batch(procedure, calls[start : start + BATCH])
        return values

    def close(self) -> None:
        """As the process ends, and wasmtime can still free what it has made; later it would complain."""
        with self._lock:
            for each in (self._client.store, self._client.linker, self._client.module, self._client.engine):
                each.close()

    def _batch(self, procedure: str, calls: Sequence[Parameters]) -> list[Any | Fault]:
        try:
            return self._call(procedure, calls)
        except Exception as error:  # the module has ended, or a value has no form in JSON: some call's own fault
            if len(calls) == 1:
                return [Fault(str(error).strip().partition("\n")[0] or type(error).__name__)]
            half = len(calls) // 2
            return self._batch(procedure, calls[:half]) + self._batch(procedure, calls[half:])

    def _call(self, procedure: str, calls: Sequence[Parameters]) -> list[Any | Fault]:
        from promptl_ai.rpc.types import Call, Procedure
        from wasmtime import Store

        made = [Call(procedure=Procedure(procedure), parameters=dict(each)) for each in calls]
        with self._lock, tempfile.TemporaryDirectory(prefix="pybatch-promptl-") as folder:
            self._client.options.working_dir = folder
            self._client.store = Store(self._client.engine)  # which keeps the memory of all that ran in it
            results = self._client._execute(made)
        if len(results) != len(calls):
            raise RuntimeError(f"PromptL has given {len(results)} results of {len(calls)}")
        return [
            each.value
            if each.error is None
            else Fault.of({"message": each.error.message, **(each.error.details or {})})
            for each in results
        ]


@functools.lru_cache(maxsize=1)
def runtime() -> Runtime:
    """The process's own, which takes a second or two to be compiled. Raises PromptError if promptl-ai is missing."""
    try:
        from promptl_ai.bindings.promptl import DEFAULT_PROMPTL_OPTIONS
        from promptl_ai.rpc import Client, ClientOptions
    except ModuleNotFoundError:
        raise PromptError("PromptL needs the package promptl-ai: pip install 'pybatch[promptl]'") from None
    module = DEFAULT_PROMPTL_OPTIONS.module_path
    assert module is not None
    made = Runtime(Client(ClientOptions(module_path=module, working_dir=tempfile.gettempdir())))
    atexit.register(made.close)
    return made
