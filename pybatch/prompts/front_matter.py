"""What a prompt's file says in front of its text, between two lines of three hyphens: YAML that sets the model and its
sampling."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import NAMES, expect_params
from pybatch.jobs.dialects.row_params import typed
from pybatch.prompts.errors import Text

OPENING = re.compile(r"\s*---[ \t]*\n")
CLOSING = re.compile(r"^---[ \t]*(?:\n|\Z)", re.MULTILINE)
LONGEST = 65_536  # characters

OWN: Mapping[str, type] = {
    "model": str,
    "language": str,
    "description": str,
    "system": str,
    "defaults": dict,
    "strict": bool,
    "steps": list,
}
ALIASES = {
    "maxTokens": "max_tokens",
    "maxOutputTokens": "max_tokens",
    "topP": "top_p",
    "topK": "top_k",
    "minP": "min_p",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "stopSequences": "stop",
}
"""Names that Latitude's prompts have for sampling parameters."""

NO_EFFECT = ("provider", "type", "agents", "maxSteps", "maxRetries", "name", "version")
"""Keys of Latitude's prompts that change no answer of a model that runs here."""


@dataclass(frozen=True)
class Entry:
    """A key of a mapping, with its value and their places in the text, by character."""

    value: Any
    key_at: int
    value_at: int
    block: bool = False  # text on lines of its own, behind | or >
    entries: tuple[Mapping[str, Entry], ...] = ()  # of a list of mappings


@dataclass(frozen=True)
class Config:
    """What the front matter says. sampling: fields of SamplingParams. defaults: values of variables that a row lacks.
    strict: a row may have no fields but the variables. steps: those before the text's own. tools: for the chat
    template, as OpenAI's requests have them."""

    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False
    language: str | None = None
    steps: tuple[Mapping[str, Entry], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few of them in each other come to gigabytes
            raise yaml.MarkedYAMLError(problem="aliases are not known", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


def split(text: Text) -> tuple[Text | None, Text]:
    """The front matter, None where there is none, and the rest. Raises PromptError if it does not end."""
    opening = OPENING.match(text.text)
    if opening is None:
        return None, text
    closing = CLOSING.search(text.text, opening.end())
    if closing is None:
        raise text.error("the front matter is not closed: expected a line of three hyphens", text.text.index("---"))
    if closing.start() - opening.end() > LONGEST:
        raise text.error(f"the front matter: expected at most {LONGEST:,} characters", opening.end())
    return text.part(opening.end(), closing.start()), text.part(closing.end())


def read(text: Text, *, latitude: bool) -> Config:
    """Raises PromptError, with the place. latitude: the keys of its prompts are known too."""
    entries = mapping(text)
    sampling: dict[str, tuple[Any, int]] = {}
    own: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in OWN and not (latitude and name in ("steps", "system", "language")):
            if entry.value is None:
                continue
            if not isinstance(entry.value, OWN[name]):
                raise text.error(f"{name}: expected {_KINDS[OWN[name]]}, got {entry.value!r:.80}", entry.value_at)
            own[name] = entry.entries if name == "steps" else entry.value
            if isinstance(entry.value, list) and len(entry.entries) != len(entry.value):
                raise text.error("steps: expected a list of mappings, each with name and prompt", entry.value_at)
        elif latitude and name == "schema":
            sampling["structured_outputs"] = {"json": entry.value}, entry.value_at
        elif latitude and name == "tools":
            own[name] = tools_of(text, entry)
        elif not (latitude and name in NO_EFFECT):
            sampling[sampling_name(text, name, entry, latitude=latitude)] = entry.value, entry.value_at
    own.pop("description", None)
    if any(not isinstance(name, str) for name in own.get("defaults", ())):
        raise text.error("defaults: expected names as keys", entries["defaults"].value_at)
    return Config(sampling=checked(text, sampling), **own)


def tools_of(text: Text, entry: Entry) -> tuple[Mapping[str, Any], ...]:
    """Latitude's tools, a mapping of names to descriptions and parameters, as OpenAI's. Raises PromptError."""
    given = entry.value
    if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
        raise text.error("tools: expected names, each with description and parameters", entry.value_at)
    return tuple({"type": "function", "function": {"name": str(name), **tool}} for name, tool in given.items())


def sampling_name(text: Text, name: str, entry: Entry, *, latitude: bool, others: Collection[str] = OWN) -> str:
    """The field of SamplingParams that a key sets. Raises PromptError for unknown ones. others: keys there are."""
    name = ALIASES.get(name, name) if latitude else name
    if name not in NAMES:
        known = [*others, *NAMES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(others)} or a sampling parameter"
        raise text.error(f"unknown key {name!r:.80}; {hint}", entry.key_at)
    return name


def checked(text: Text, given: Mapping[str, tuple[Any, int]]) -> dict[str, Any]:
    """Sampling parameters, each with its place. Raises PromptError for a bad one."""
    params = {name: typed(name, value) for name, (value, _) in given.items() if value is not None}
    try:
        expect_params(params)
    except RequestError as error:
        places = {name: offset for name, (_, offset) in given.items()}
        at = places.get(error.param or "", min(places.values()))
        raise text.error(str(error), at) from None
    return params


def mapping(text: Text) -> Mapping[str, Entry]:
    """The text's keys and values. Raises PromptError."""
    try:
        return _mapping(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise text.error(f"not valid YAML: {error.problem or error.context}", mark.index if mark else 0) from None
    except yaml.reader.ReaderError as error:
        raise text.error(f"not valid YAML: {error.reason}", error.position) from None
    except RecursionError:
        raise text.error("not valid YAML: it is nested too deep", 0) from None


def text_of(text: Text, entry: Entry) -> Text:
    """A value that is text, with its place. entry: of a mapping in the text."""
    line, column = text.position(entry.value_at)
    if not entry.block:
        return Text(text.file, entry.value, line, column)
    below = text.text[entry.value_at :].split("\n")[1:]
    first = next((each for each in below if each.strip()), "")
    indent = len(first) - len(first.lstrip())
    return Text(text.file, entry.value, line + 1, indent + 1, indent)


def _mapping(text: Text) -> Mapping[str, Entry]:
    loader = _Loader(text.text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise text.error(
                "the front matter: expected keys and values, such as temperature: 0", node.start_mark.index
            )
        return _entries(text, loader, node)
    finally:
        loader.dispose()


def _entries(text: Text, loader: Any, node: yaml.MappingNode) -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    for key, value in node.value:
        at = key.start_mark.index
        if not isinstance(key, yaml.ScalarNode):
            raise text.error("expected a name as key", at)
        if key.value in found:
            raise text.error(f"{key.value} is there twice", at)
        inner = value.value if isinstance(value, yaml.SequenceNode) else ()
        items = tuple(_entries(text, loader, each) for each in inner if isinstance(each, yaml.MappingNode))
        try:
            constructed = loader.construct_object(value, deep=True)
        except yaml.YAMLError:
            raise
        except Exception as error:  # a date that there is not, a number too long
            raise text.error(f"not valid YAML: {error}", value.start_mark.index) from None
        found[key.value] = Entry(
            constructed, at, value.start_mark.index, getattr(value, "style", None) in ("|", ">"), items
        )
    return found


_KINDS = {str: "text", dict: "a mapping", bool: "true or false", list: "a list"}
