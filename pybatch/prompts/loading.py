"""Reads prompts: from a file, from a folder of named ones, or from text."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from pybatch.jobs.dialects.plain import RESULT_FIELDS
from pybatch.prompts import front_matter
from pybatch.prompts.errors import PromptError, Text
from pybatch.prompts.front_matter import Config, Entry
from pybatch.prompts.jinja import JinjaTemplate, Read
from pybatch.prompts.plain import PlainTemplate
from pybatch.prompts.prompt import OF_ROWS, Prompt, Step
from pybatch.prompts.promptl import PromptlSource, PromptlTemplate
from pybatch.prompts.rendering import Template

LANGUAGES = ("plain", "jinja", "promptl")
ENDINGS = {
    ".prompt": "plain",
    ".txt": "plain",
    ".md": "plain",
    ".jinja": "jinja",
    ".jinja2": "jinja",
    ".j2": "jinja",
    ".promptl": "promptl",
}
FOLDER = "prompts"
LONGEST = 1 << 20  # bytes of a file


def load(prompt: str | os.PathLike[str], folder: str | os.PathLike[str] = FOLDER) -> Prompt:
    """Reads a prompt.

    prompt: the path of a file, or the name of one in the folder: "reviews/mood" is prompts/reviews/mood.jinja, or
      .prompt, .promptl and so on. With a version behind it, or the first digits of one ("reviews/mood@3f2a91"), it is
      that version or an error.
    folder: of named prompts.

    Raises PromptError for what is wrong with the text, with its line and column; FileNotFoundError, with the names that
    there are, for a prompt that is not there; OSError for files that cannot be read.
    """
    path, _, version = os.fspath(prompt).partition("@") if not os.path.isfile(prompt) else (os.fspath(prompt), "", "")
    file, root = find(path, Path(folder))
    relative = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
    text = read_text(file)
    name = PurePosixPath(relative).with_suffix("").as_posix()
    made = build(Text(str(file), text), name, ENDINGS.get(file.suffix, "plain"), relative, partial(read_below, root))
    if version and not made.version.startswith(version):
        raise PromptError(f"expected the version {version}, but the file is {made.version}", file=str(file))
    return made


def parse(text: str, *, language: str = "plain", name: str = "prompt") -> Prompt:
    """A prompt that is text: front matter, if it has one, and a template, which may not include files.

    language: plain ({field}), jinja or promptl, unless the front matter says. Raises PromptError.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language: expected one of {', '.join(LANGUAGES)}, got {language!r}")

    def read(path: str) -> str:
        raise PromptError(f"{path} cannot be included: the prompt is no file")

    return build(Text("", text.replace("\r\n", "\n")), name, language, name, read)


def names(folder: str | os.PathLike[str] = FOLDER) -> list[str]:
    """The names of the prompts in a folder, in order."""
    return sorted({_name(file, Path(folder)) for file in _files(Path(folder))})


def find(path: str, folder: Path) -> tuple[Path, Path]:
    """A prompt's file, and the folder out of which nothing is included: that of named prompts, where the file is in it,
    else the file's own."""
    file = Path(path)
    if not file.is_file():
        found = [each for each in _files(folder) if _name(each, folder) == path]
        if len(found) > 1:
            raise PromptError(f"{path}: expected one file of this name in {folder}, got {', '.join(map(str, found))}")
        if not found:
            raise FileNotFoundError(missing(path, folder))
        file = found[0]
    inside = folder.is_dir() and file.resolve().is_relative_to(folder.resolve())
    return (folder / file.resolve().relative_to(folder.resolve()), folder) if inside else (file, file.parent)


def missing(path: str, folder: Path) -> str:
    known = names(folder)
    near = difflib.get_close_matches(path, known, n=1)
    if near:
        return f"{path}: there is no such prompt; did you mean {near[0]!r}?"
    there = f"it has {', '.join(known[:8])}" if known else "there are none"
    return f"{path}: expected a file, or the name of a prompt in {folder}; {there}"


def build(text: Text, name: str, language: str, path: str, read: Read) -> Prompt:
    """path: of the text from the folder that `read` reads from."""
    said, body = front_matter.split(text)
    config = Config() if said is None else front_matter.read(said, latitude=language == "promptl")
    if config.language not in (None, *LANGUAGES):
        raise PromptError(f"language: expected one of {', '.join(LANGUAGES)}", file=text.file)
    language = config.language or language
    if language == "promptl":
        source = PromptlSource(text, path, read)
        steps = tuple(Step(each, PromptlTemplate(source, number)) for number, each in enumerate(source.steps))
    else:
        before = tuple(_step(each, said, language, path, read) for each in config.steps if said is not None)
        steps = (*before, Step("response", _template(language, body, path, read)))
    made = Prompt(name, language, text.text, config, steps, text.file)
    for number, step in enumerate(steps):
        if step.name in (*OF_ROWS, *RESULT_FIELDS, *made.answers[:number]) and number < len(steps) - 1:
            expected = "a name that is neither a result's field, nor a parameter, nor another step's"
            raise PromptError(f"step {step.name!r}: expected {expected}", file=text.file)
        for later in made.answers[number:]:
            if later in step.template.variables:
                raise PromptError(f"step {step.name!r} asks for {later!r}, an answer that comes later", file=text.file)
    return made


def _template(language: str, text: Text, path: str, read: Read) -> Template:
    return JinjaTemplate(text, path, read) if language == "jinja" else PlainTemplate(text)


def _step(entries: Mapping[str, Entry], said: Text, language: str, path: str, read: Read) -> Step:
    """One of the front matter's steps: name, prompt, and sampling parameters."""
    first = min((entry.key_at for entry in entries.values()), default=0)
    sampling = {}
    for key, entry in entries.items():
        if key in ("name", "prompt"):
            if not isinstance(entry.value, str) or not entry.value.strip():
                raise said.error(f"{key}: expected text, got {entry.value!r:.80}", entry.value_at)
        else:
            known = front_matter.sampling_name(said, key, entry, latitude=False, others=("name", "prompt"))
            sampling[known] = entry.value, entry.value_at
    for key in ("name", "prompt"):
        if key not in entries:
            raise said.error(f"a step has no {key}", first)
    template = _template(language, front_matter.text_of(said, entries["prompt"]), path, read)
    return Step(entries["name"].value, template, front_matter.checked(said, sampling) if sampling else {})


def read_text(file: Path) -> str:
    """Raises OSError, and PromptError for what is not text."""
    content = file.read_bytes()
    if len(content) > LONGEST:
        raise PromptError(f"expected at most {LONGEST:,} bytes, got {len(content):,}", file=str(file))
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise PromptError("not UTF-8", file=str(file), line=line, column=column) from None


def read_below(root: Path, path: str) -> str:
    """The text of a file in the folder, whose ending may be left out. Raises PromptError."""
    file = root / path
    if not file.resolve().is_relative_to(root.resolve()):
        raise PromptError(f"{path} is outside of {root}")
    candidates = [file, *(file.with_name(f"{file.name}{ending}") for ending in ENDINGS)]
    for each in candidates:
        if each.is_file():
            try:
                return read_text(each)
            except OSError as error:
                raise PromptError(f"{path}: {error.strerror}") from None
    raise PromptError(f"there is no file {path} in {root}")


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.suffix in ENDINGS and file.is_file())


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()
