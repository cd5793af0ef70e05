"""pybatch chat: a conversation on a terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from pybatch.cli.command import NOTHING_ANSWERED, CommandError, UsageError, load, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, takes
from pybatch.cli.signals import ending_at_once, exit_code, interrupting
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.engine import SamplingParams


@takes(sampling=SamplingFlags, engine=EngineFlags)
def chat(
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    *,
    sampling: SamplingFlags,
    engine: EngineFlags,
) -> None:
    """Talk with a model.

    /clear begins a new conversation, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer. If standard input is not a
    terminal, all of it is one message, and its answer is printed.

    Exit code: as pybatch run's.
    """
    message = None if sys.stdin.isatty() else piped_message()
    with ending_at_once(NOTHING_ANSWERED):
        llm, params = load(engine, sampling)
    conversation = Chat(llm, params, system)
    with usage_errors(), interrupting():
        if message is None:
            converse(conversation)
            return
        try:
            answer_once(conversation, message)
        except KeyboardInterrupt:
            raise CommandError("interrupted: the answer is not whole", exit_code(signal.SIGINT)) from None


def piped_message() -> str:
    """All of standard input. Raises UsageError."""
    try:
        text = sys.stdin.read()
    except OSError as error:  # closed, or a folder
        raise UsageError(f"standard input: {error.strerror or error}") from error
    if not text.strip():
        raise UsageError("standard input: expected a message, got none")
    return text


class Chat:
    """A conversation with its history."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm, self._params = llm, params
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self.clear()

    def clear(self) -> None:
        self._messages = list(self._opening)

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yields the answer in pieces. If the iterator is closed early, what has come of the answer stays in the
        history. Raises ValueError if the message cannot be answered; it then does not enter the history."""
        from pybatch.api.inputs import Conversation

        question = {"role": "user", "content": text}
        answer = ""
        with closing(
            self._llm.stream(Conversation([*self._messages, question]), self._params, partial=True)
        ) as outputs:
            try:
                for output in outputs:
                    if output.error is not None:
                        raise ValueError(output.error)
                    text = output.outputs[0].text
                    yield text[len(answer) :]
                    answer = text
            finally:
                if answer:
                    self._messages += [question, {"role": "assistant", "content": answer}]


def answer_once(chat: Chat, text: str) -> None:
    """Prints the answer to one message as it comes; on a terminal, with escapes in place of control characters."""
    shown = partial(printable, keep="\n\t") if sys.stdout.isatty() else str
    with closing(chat.ask(text)) as pieces:
        for piece in pieces:
            print(shown(piece), end="", flush=True)
    print()


def converse(chat: Chat) -> None:
    """Reads messages from the terminal until /exit or the end of input."""
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)")
            continue
        if text == "/exit":
            return
        if text == "/clear":
            chat.clear()
        elif text.startswith("/"):
            print(f"{printable(text)}: expected /clear or /exit", file=sys.stderr)
        elif text:
            try:
                answer_once(chat, text)
            except KeyboardInterrupt:
                print(" (stopped)")
            except ValueError as error:
                print(f"{printable(str(error))}\n(/clear begins a new conversation)", file=sys.stderr)
