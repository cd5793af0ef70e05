"""Messages in a template's text: <system> ... </system>, <user> ... </user>.

Only the template's own tags count. What rows put in stays text, whatever it holds: no review can close its message and
open another.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence

from pybatch.api.inputs import Message
from pybatch.prompts.errors import PromptError, Text

ROLES = ("system", "developer", "user", "assistant")
TAG = re.compile(rf"\\?</?({'|'.join(ROLES)})>")


def split(text: Text) -> list[tuple[str | None, Text]]:
    """The roles and the texts of messages; where there are no tags, one text without a role.

    Raises PromptError, with its place, for a tag that has no partner and for text outside of messages.
    """
    found = list(TAG.finditer(text.text))
    tags = [(tag.start(), tag.end(), tag[0]) for tag in found if not tag[0].startswith("\\")]
    if not tags:
        return [(None, text.stripped())]
    blocks: list[tuple[str | None, Text]] = []
    opened: tuple[int, int, str] | None = None
    outside = 0
    for tag in (*tags, None):
        start, end, name = tag or (len(text.text), len(text.text), "")
        if opened is None:
            between = text.part(outside, start).stripped()
            if between.text:
                raise between.error("text outside of the messages", 0)
            if tag is not None and name.startswith("</"):
                raise text.error(f"{name} closes a message that is not open", start)
            opened = tag
        elif name != f"</{opened[2][1:]}":
            raise text.error(f"{opened[2]} is not closed: expected </{opened[2][1:]}", opened[0])
        else:
            blocks.append((opened[2][1:-1], text.part(opened[1], start).stripped()))
            opened, outside = None, end
    return blocks


def unescaped(text: str) -> str:
    r"""\<user> stands for the tag as text."""
    return TAG.sub(lambda tag: tag[0].removeprefix("\\"), text)


# Each tag becomes as many characters for private use, drawn anew in each process, so that nobody's data holds them
# and every column stays where it was.
_MARKS = {
    tag: "".join(chr(0xF0000 + secrets.randbelow(0xFFFD)) for _ in tag)
    for role in ROLES
    for tag in (f"<{role}>", f"</{role}>", f"\\<{role}>", f"\\</{role}>")
}
_TAGS = {mark: tag for tag, mark in _MARKS.items()}
_MARK = re.compile("|".join(map(re.escape, _TAGS)))


def marked(source: str) -> str:
    """A template's source, with marks in place of the tags."""
    return TAG.sub(lambda tag: _MARKS[tag[0]], source)


def unmarked(text: str) -> str:
    return _MARK.sub(lambda mark: _TAGS[mark[0]], text)


def messages_of(rendered: str, file: str) -> str | list[Message]:
    """What a template with marks has written: its messages, or its text where it has none. Raises PromptError."""
    pieces = list(_pieces(rendered))
    if len(pieces) == 1:
        return pieces[0][1].strip()
    messages: list[Message] = []
    opened: str | None = None
    for tag, text in pieces:
        if tag.startswith("</") if opened is None else tag != f"</{opened}>":
            at = "no message is open" if opened is None else f"<{opened}> is open"
            raise PromptError(f"the template has written {tag or 'its end'} where {at}", file=file)
        opened = None if tag.startswith("</") or not tag else tag[1:-1]
        if opened is not None:
            messages.append({"role": opened, "content": text.strip()})
        elif text.strip():
            raise PromptError(f"text outside of the messages: {text.strip()!r:.80}", file=file)
    if opened is not None:
        raise PromptError(f"<{opened}> is not closed", file=file)
    return messages


def _pieces(rendered: str) -> Iterator[tuple[str, str]]:
    """The tags, "" in front of the first, each with the text behind it."""
    tag, start, text = "", 0, []
    for mark in _MARK.finditer(rendered):
        text.append(rendered[start : mark.start()])
        start, found = mark.end(), _TAGS[mark[0]]
        if found.startswith("\\"):
            text.append(found[1:])
            continue
        yield tag, "".join(text)
        tag, text = found, []
    yield tag, "".join([*text, rendered[start:]])


def with_system(messages: str | Sequence[Message], system: str | None) -> str | list[Message]:
    """The messages with a system message in front, which makes text a user's message."""
    if system is None:
        return messages if isinstance(messages, str) else list(messages)
    rest: Sequence[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return [{"role": "system", "content": system}, *rest]
