from __future__ import annotations

from pathlib import Path

import pytest

from pybatch.prompts import PromptError, load, names, parse


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named prompts, in the working directory's folder "prompts"."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "mood.prompt": "---\ntemperature: 0\n---\nIs this praise? {text}",
        "reviews/mood.jinja": "{% include '../parts/intro.jinja' %}\n<user>{{ text }}</user>",
        "parts/intro.jinja": "<system>Be {{ tone }}.</system>",
    }.items():
        file = tmp_path / "prompts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "prompts"


def test_a_prompt_is_loaded_by_its_path_or_its_name(folder: Path) -> None:
    assert names() == ["mood", "parts/intro", "reviews/mood"]
    by_name, by_path = load("mood"), load(folder / "mood.prompt")
    assert by_name.version == by_path.version
    assert (by_name.name, by_path.name, load("prompts/mood.prompt").name) == ("mood", "mood", "mood")
    assert by_name.render([{"text": "Lovely."}]) == ["Is this praise? Lovely."]
    assert (by_name.language, by_name.variables) == ("plain", ("text",))
    assert by_name.config.sampling == {"temperature": 0}


def test_includes_are_relative_to_the_file_and_belong_to_the_version(folder: Path) -> None:
    prompt = load("reviews/mood")
    assert prompt.variables == ("text", "tone")
    assert prompt.render([{"tone": "kind", "text": "x"}]) == [
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]
    ]
    (folder / "parts/intro.jinja").write_text("<system>Be very {{ tone }}.</system>")
    assert load("reviews/mood").version != prompt.version
    (folder / "parts/intro.jinja").write_text("<system>Be {{ tone }}.</system>")
    assert load("reviews/mood").version == prompt.version


def test_a_version_is_asked_for_behind_the_name(folder: Path) -> None:
    version = load("mood").version
    assert load(f"mood@{version[:6]}").version == version
    (folder / "mood.prompt").write_text("Is this blame? {text}")
    with pytest.raises(PromptError, match=f"expected the version {version}, but the file is {load('mood').version}"):
        load(f"mood@{version}")


def test_a_prompt_that_is_not_there_is_told_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'mood'"):
        load("moood")
    with pytest.raises(FileNotFoundError, match="it has mood, parts/intro, reviews/mood"):
        load("zzzzzz")
    with pytest.raises(FileNotFoundError, match="expected a file, or the name of a prompt in none; there are none"):
        load("mood", "none")
    (folder / "mood.jinja").write_text("x")
    with pytest.raises(PromptError, match="expected one file of this name"):
        load("mood")


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/passwd", "../../prompts-not/x"])
def test_nothing_outside_of_the_folder_is_included(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "reviews/bad.jinja").write_text(f"Hello\n  {{% include '{name}' %}}")
    with pytest.raises(PromptError, match=r"bad\.jinja, line 2, column 6: .* is outside of prompts"):
        load("reviews/bad")


def test_a_link_does_not_lead_out_either(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.jinja").symlink_to(tmp_path / "secret.txt")
    (folder / "bad.jinja").write_text("{% include 'link.jinja' %}")
    with pytest.raises(PromptError, match=r"link\.jinja is outside"):
        load("bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n {b c}\n {d", r"line 3, column 2: a single '\{'"),
        ("a {b!r}", "line 1, column 3: only {field} is known"),
        ("<user>a", "line 1, column 1: <user> is not closed: expected </user>"),
        ("a <user>b</user>", "line 1, column 1: text outside of the messages"),
        ("<user>b</user>\n  </system>", "line 2, column 3: </system> closes a message that is not open"),
        ("---\ntemprature: 0\n---\nx", "line 2, column 1: unknown key 'temprature'; did you mean 'temperature'"),
        ("---\nmodel: m\ntop_p: 3\n---\nx", "line 3, column 8: top_p: expected"),
        ("---\nmodel: 3\n---\nx", "line 2, column 8: model: expected text, got 3"),
        ("---\nmodel: a\nmodel: b\n---\nx", "line 3, column 1: model is there twice"),
        ("---\nstop: [a\n---\nx", "line 3, column 1: not valid YAML"),
        ("---\n- a\n---\nx", "line 2, column 1: the front matter: expected keys and values"),
        ("---\na: &x 1\n---\nx", "line 2, column 1: unknown key 'a'"),
        ("---\nstop: [&x b, *x]\n---\nx", "line 2, column 14: not valid YAML: aliases are not known"),
        ("---\nmodel: x\n", "line 1, column 1: the front matter is not closed"),
        ("---\nlanguage: perl\n---\n", "language: expected one of plain, jinja, promptl"),
        ("---\nsteps:\n  - name: a\n    prompt: |\n\n      b {c\n---\nx", "line 6, column 9: a single"),
        ("---\nsteps:\n  - name: a\n    prompt: b {c\n---\nx", "line 4, column 15: a single"),
        ("---\nsteps:\n  - prompt: a\n---\nx", "line 3, column 5: a step has no name"),
        ("---\nsteps: [a]\n---\nx", "line 2, column 8: steps: expected a list of mappings"),
        ("---\nsteps:\n  - name: a\n    prompt: b\n    tmp: 0\n---\nx", "line 5, column 5: unknown key 'tmp'"),
        ("---\nsteps:\n  - name: response\n    prompt: b\n---\nx", "step 'response': expected a name that is neither"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse(text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.prompt"
    file.write_bytes(b"ab\nc\xff")
    with pytest.raises(PromptError, match=r"a\.prompt, line 2, column 2: not UTF-8"):
        load(file)
    file.write_bytes(b"\xef\xbb\xbf---\r\nmodel: m\r\n---\r\nhi\r\n")
    assert (load(file).config.model, load(file).render([{}])) == ("m", ["hi"])
