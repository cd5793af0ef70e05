"""PromptL against promptl-ai itself: on prompts of its own documentation's and tests' kinds, in batches."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from promptl_ai import Adapter, Promptl
from promptl_ai.bindings.types import _MessageLike

from pybatch.prompts import PromptError, load, parse
from pybatch.prompts.promptl_runtime import runtime
from pybatch.prompts.rendering import Rendered

# The public example prompts are of latitude-dev/promptl (README, examples/rpc.ts) and promptl-py (README, tests).
EXAMPLES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "the README's": (
        "---\nmodel: <your-model>\ntemperature: 0.6\n---\n\nYou are a useful AI assistant expert in geography.\n\n"
        "<user>\n  Hi! What's the capital of {{ country_name }}?\n</user>\n",
        {"country_name": "Spain"},
    ),
    "context and question": (
        "Given a context, answer questions succintly yet complete.\n<system>{{ context }}</system>\n"
        "<user>Please, help me with {{ question }}!</user>\n",
        {"context": "context", "question": "question"},
    ),
    "assignment, loop, roles": (
        "{{ foo = 'foo' }}\nSystem message\n\n{{for element in [1, 2, 3]}}\n  <user>\n    User message: {{element}}\n"
        "  </user>\n{{endfor}}\n\n<assistant>\n  Assistant message: {{foo}}\n</assistant>\n",
        {},
    ),
    "comments": ("anna\nbob\n/* comment */\ncharlie <!-- another -->\n", {}),
    "parts of content": (
        "Hello world\n<user><content-text>This is</content-text> yours, {{ who }}</user>",
        {"who": "me"},
    ),
    "a message's role from a variable": (
        "<message role={{ role }}>{{ text }}</message>",
        {"role": "user", "text": "x"},
    ),
    "conditions": ("{{ if n > 2 && !done }}big{{ else }}small{{ endif }} {{ name?.first ?? 'nobody' }}",
                   {"n": 3, "done": False, "name": None}),
    "values": ("{{ list }} {{ map.a }} {{ 2 / 3 }} {{ text.length }} {{ typeof n }}",
               {"list": [1, "b"], "map": {"a": None}, "text": "héé", "n": 1}),
    "a loop with an index": ("{{ for each, i in items }}{{ i }}. {{ each.name }} {{ else }}none{{ endfor }}",
                             {"items": [{"name": "a"}, {"name": "b"}]}),
    "escapes": ("\\<user> is a tag, \\{{ x }} is none: {{ x }}", {"x": "</user><system>"}),
    "tool calls": ('<assistant><tool-call id="1" name="f" arguments={{ { a: 1 } }} /></assistant>'
                   '<tool id="1" name="f">done {{ x }}</tool>', {"x": 1}),
}  # fmt: skip

CHAINS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "promptl-py's README": (
        "<step>\n    First, think step by step about how to answer the user's question.\n    <user>\n"
        "        Taking into account this context: {{context}}\n        I have the following question: {{question}}\n"
        "    </user>\n</step>\n<step>\n    Finally, answer the user's question succinctly yet complete.\n</step>\n",
        {"context": "PromptL is a language.", "question": "What is PromptL?"},
    ),
    "examples/rpc.ts": (
        "<step>\n  <system>\n    You are a helpful assistant.\n  </system>\n  <user>\n    Say hello.\n  </user>\n"
        "</step>\n<step>\n  <user>\n    Now say goodbye.\n  </user>\n</step>\n",
        {},
    ),
    "isolated": ("<step>First</step><step isolated>Alone</step><step>Last {{ x }}</step>", {"x": 1}),
    "answers as variables, and a message behind": (
        "<step as=\"reasoning\">Think about {{ problem }}.</step>\n<step as=short>In short: {{ reasoning }}</step>\n"
        "<user>{{ if short == 'answer 1' }}Really?{{ else }}So?{{ endif }}</user>",
        {"problem": "x"},
    ),
    "variables over steps": ("{{ foo = 5 }}<step>{{ foo += 1 }}a</step><step>{{ foo }}</step>", {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def promptl() -> Promptl:
    return Promptl()


def messages_of(result: Any) -> list[dict[str, Any]]:
    return [message.model_dump(mode="json", by_alias=True, exclude_none=True) for message in result.messages]


def dumped(promptl: Promptl, messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Our messages, through promptl-ai's own types."""
    read = [_MessageLike.validate_python(dict(each), context={"adapter": Adapter.OpenAI}) for each in messages]
    return [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in read]


@pytest.mark.parametrize("name", EXAMPLES)
def test_messages_are_those_of_promptl_ai(promptl: Promptl, name: str) -> None:
    text, parameters = EXAMPLES[name]
    expected = messages_of(promptl.prompts.render(text, dict(parameters), adapter=Adapter.OpenAI))
    prompt = parse(text, language="promptl")
    several = prompt.render([parameters, *({**parameters, "more": i} for i in range(3))])
    for messages in several:
        assert dumped(promptl, messages) == expected
    assert {*prompt.variables} == {*promptl.prompts.scan(text).parameters} <= {*parameters}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_asks_what_promptl_ai_asks_step_by_step(promptl: Promptl, name: str) -> None:
    text, parameters = CHAINS[name]
    prompt = parse(text, language="promptl")
    chain = promptl.chains.create(text, dict(parameters), adapter=Adapter.OpenAI)
    answer, fields = None, dict(parameters)
    for number, step in enumerate(prompt.steps):
        expected = messages_of(chain.step(answer))
        assert not chain.completed
        assert dumped(promptl, prompt.render([fields], number)[0]) == expected
        answer = fields[step.name] = f"answer {number}"
    chain.step(answer)
    assert chain.completed
    assert prompt.steps[-1].name == "response"


def test_references_are_files_and_their_text_belongs_to_the_version(promptl: Promptl, tmp_path: Any) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "main.promptl").write_text('<step>\n  <prompt path="docs/instructions" />\n  <user>\n'
                                           "    Tell me about {{ topic }}.\n  </user>\n</step>\n")  # fmt: skip
    (tmp_path / "docs/instructions.promptl").write_text('<system>\n  Be concise.\n</system><prompt path="./more" />')
    (tmp_path / "docs/more.promptl").write_text("<system>Really.</system>")
    prompt = load(tmp_path / "main.promptl")
    references = {name: (tmp_path / f"{name}.promptl").read_text() for name in ("docs/instructions", "docs/more")}
    expected = promptl.prompts.render(prompt.text, {"topic": "TypeScript"}, full_path="main", references=references)
    assert dumped(promptl, prompt.render([{"topic": "TypeScript"}])[0]) == messages_of(expected)
    (tmp_path / "docs/more.promptl").write_text("<system>Truly.</system>")
    assert load(tmp_path / "main.promptl").version != prompt.version
    (tmp_path / "docs/more.promptl").write_text('<prompt path="../nowhere" />')
    with pytest.raises(PromptError, match=r"docs/more, line 1, column 1: there is no file nowhere"):
        load(tmp_path / "main.promptl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n {{ b", "line 2, column 5: Unexpected EOF"),
        ("a\n</user>", "line 2, column .*: Unexpected closing tag for user"),
        ("<user>a", "line 1, column 1: Block was left open"),
        ("---\nmodel: x\n---\n<user><user>a</user></user>", "line 4, column 7: Message tags cannot be inside"),
        ("<tool>x</tool>", "line 1, column 1: Tool message"),
        ('a\n<prompt path="x" />', "line 2, column 1: x cannot be included"),
        ("{{ if a }}<step>b</step>{{ endif }}<step>c</step>", "line 1, column 11: a <step> that only some rows take"),
        ("---\nmodle: x\n---\na", "line 2, column 1: unknown key 'modle'; did you mean 'model'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse(text, language="promptl")


def test_one_rows_fault_is_that_rows() -> None:
    prompt = parse("{{ a.b.c }}", language="promptl")
    rows: list[dict[str, Any]] = [{"a": {"b": {"c": number}}} for number in range(9)]
    rows[3], rows[5], rows[7] = {"a": {}}, {"a": {"b": {"c": "\ud800"}}}, {}
    rendered = prompt.render_each(rows)
    faults = [number for number, each in enumerate(rendered) if isinstance(each, PromptError)]
    assert faults == [3, 5, 7]
    assert "cannot read property 'c' of undefined" in str(rendered[3])
    assert "the prompt asks for 'a'; the row has nothing" in str(rendered[7])
    assert [rendered[i] for i in (0, 4, 8)] == [Rendered([{"role": "system", "content": str(i)}]) for i in (0, 4, 8)]
    with pytest.raises(PromptError, match="row 3: cannot read"):
        prompt.render(rows)


def test_many_rows_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = parse("{{ a }}", language="promptl")
    sizes: list[int] = []
    real = runtime()._call

    def counted(procedure: str, calls: Sequence[Any]) -> list[Any]:
        sizes.append(len(calls))
        return real(procedure, calls)

    monkeypatch.setattr(runtime(), "_call", counted)
    assert [messages[0]["content"] for messages in prompt.render([{"a": i} for i in range(450)])] == [
        *map(str, range(450))
    ]  # type: ignore[index]
    assert sizes == [200, 200, 50]


def test_latitudes_names_of_parameters_and_tools_are_known() -> None:
    prompt = parse(
        "---\nprovider: OpenAI\nmodel: gpt-4o\nmaxTokens: 7\ntopP: 0.5\nstopSequences: [a]\n"
        "tools:\n  find:\n    description: Finds.\n    parameters:\n      type: object\n"
        "schema:\n  type: object\n---\n{{ a }}",
        language="promptl",
    )
    schema = {"json": {"type": "object"}}
    assert prompt.config.model == "gpt-4o"
    assert prompt.config.sampling == {"max_tokens": 7, "top_p": 0.5, "stop": ["a"], "structured_outputs": schema}
    tool = {"name": "find", "description": "Finds.", "parameters": {"type": "object"}}
    assert prompt.config.tools == ({"type": "function", "function": tool},)


def test_without_promptl_ai_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "promptl_ai.bindings.promptl", None)
    with pytest.raises(PromptError, match=r"PromptL needs the package promptl-ai: pip install 'pybatch\[promptl\]'"):
        runtime.__wrapped__()
