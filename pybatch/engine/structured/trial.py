"""Compiles grammars in a process of its own first, which can be killed where the library cannot be interrupted."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import IO

from pybatch.engine.structured.grammar import (
    GrammarError,
    Vocabulary,
    first_lines,
    grammar_text,
    make_matcher,
    make_tokenizer,
)
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.machine.readiness import wait_ready

MEMORY = 1 << 30  # bytes that a grammar may take
_START_SECONDS = 120.0  # for the process to import llguidance and build its tokenizer, on a busy machine
_START = "import sys; sys.path[:] = {}; from pybatch.engine.structured.trial import serve; serve()"


class Trial:
    """A process that tries grammars, one at a time; started when it is needed and killed by what it cannot do."""

    def __init__(self, vocabulary: Vocabulary, *, seconds: float) -> None:
        self._vocabulary = vocabulary
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def compile(self, constraint: StructuredOutputsParams) -> str:
        """The text of a grammar that compiles within the bounds. Raises GrammarError for any other."""
        process = self._running()
        try:
            error, grammar = self._ask(process, (constraint, self._seconds), self._seconds)
        except TimeoutError:
            self._kill()
            raise GrammarError(f"it did not compile within {self._seconds:g} s") from None
        except (EOFError, OSError, pickle.UnpicklingError):
            self._kill()
            raise GrammarError(f"compiling it takes too long or more than {MEMORY >> 20} MiB of memory") from None
        if error:
            raise GrammarError(error)
        return grammar

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        command = [sys.executable, "-c", _START.format(sys.path)]
        self._process = process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        weakref.finalize(self, end, process)
        try:
            self._ask(process, self._vocabulary, _START_SECONDS)
        except (TimeoutError, EOFError, OSError) as error:
            self._kill()
            raise GrammarError(f"the process that compiles grammars did not start: {error!r}") from error
        return process

    def _ask(self, process: subprocess.Popen[bytes], question: object, seconds: float) -> tuple[str, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        pickle.dump(question, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        if not wait_ready([process.stdout], seconds=seconds):
            raise TimeoutError
        answer: tuple[str, str] = pickle.load(process.stdout)
        return answer

    def _kill(self) -> None:
        if self._process is not None:
            end(self._process)
        self._process = None


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was still to be written
            if pipe is not None:
                pipe.close()


# ---- in the process ----


def serve() -> None:
    """Reads a vocabulary, then constraints, and answers each with an error or the grammar's text."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else is to be printed there
    tokenizer = make_tokenizer(pickle.load(questions))
    _limit_memory()
    _answer(answers, "", "")
    while True:
        try:
            constraint, seconds = pickle.load(questions)
        except EOFError:
            return
        # Its parent may be gone by the time that it should be killed.
        used = int(time.process_time()) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (used + int(seconds), resource.RLIM_INFINITY))
        try:
            grammar = grammar_text(constraint)
            matcher = make_matcher(tokenizer, grammar)
            matcher.compute_bitmask()
            if matcher.is_error():
                raise GrammarError(first_lines(matcher.get_error()))
        except GrammarError as error:
            _answer(answers, str(error), "")
        else:
            _answer(answers, "", grammar)


def _answer(answers: IO[bytes], error: str, grammar: str) -> None:
    pickle.dump((error, grammar), answers)
    answers.flush()


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # where the system has no such limit
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
