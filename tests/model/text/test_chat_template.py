"""What chat templates may do: all that real ones need, nothing without end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model.text import hostile_templates
from transformers.utils.chat_template_utils import render_jinja_template

from pybatch.model.text.chat_template import render

# Written for these tests, in the ways of the templates of Llama 3.1 and Qwen 3.
HEADERS = """
{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- set date_string = date_string | default("26 Jul 2024") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start|>system<|stop|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|stop|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at once") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot|>" }}
    {%- else %}
        {{- "<|start|>ipython<|stop|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|stop|>\\n\\n' }}{%- endif %}
"""
THINKING = """
{%- macro show(content) %}{%- if content is string %}{{- content }}{%- else %}
    {%- for item in content %}{{- item.text if 'text' in item else item }}{%- endfor %}{%- endif %}{%- endmacro %}
{%- if tools %}{{- '<|s|>system\\n' }}{{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- "\\n</tools><|e|>\\n" }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = show(message.content) %}
    {%- if message.role in ("user", "system") %}{{- '<|s|>' + message.role + '\\n' + content + '<|e|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|s|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}{{- '<|s|>' ~ message.role ~ '\\n' ~ content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "%s", "arguments": ' | format(tool_call.name) }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}{{- '}' }}
        {%- endfor %}{{- '<|e|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|s|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|s|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}
{{- messages | groupby('role') | map('first') | join(', ') }}{{- '%-8s|' % 'x' }}{{- '{:>6.2f}'.format(1.5) }}
{{- (messages[0] | items | list | first) ~ dict(a=1) ~ [1, 'x'] }}{{- range(3) | list | sum }}{{- 7 // 2 ** 2 % 5 }}
"""


def conversation(turns: int, size: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief.  "}]
    for i in range(turns):
        call = {"type": "function", "function": {"name": "find", "arguments": {"query": "größe", "n": i}}}
        messages += [
            {"role": "user", "content": f"Question {i}: " + "wörd " * (size // 5)},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": '{"answer": "<b>"}'},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nanswer " + "x" * size},
        ]
    return messages


TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {"query": {}}}}}


@pytest.mark.parametrize("template", [HEADERS, THINKING])
@pytest.mark.parametrize(("turns", "size", "tools"), [(1, 20, 1), (500, 2000, 0), (3, 500_000, 200)])
def test_long_chats_render_as_in_transformers(template: str, turns: int, size: int, tools: int) -> None:
    messages = conversation(turns, size)
    variables = {"tools": [TOOL] * tools or None, "bos_token": "<s>", "add_generation_prompt": True}
    (expected,), _ = render_jinja_template([messages], chat_template=template, **variables)
    assert render(template, messages, variables) == expected


def test_hostile_templates_end_soon_in_little_memory() -> None:
    """On a thread that is not the main one, in a process that may grow by 512 MiB."""
    result = subprocess.run(
        [sys.executable, hostile_templates.__file__], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["ended"].keys() == hostile_templates.HOSTILE.keys()
    for name, (seconds, said) in report["ended"].items():
        assert said.startswith("ValueError: chat template: "), (name, said)
        assert seconds < 3, (name, seconds)


def test_a_limit_is_told_in_words_and_holds_for_one_rendering() -> None:
    with pytest.raises(ValueError, match="chat template: it takes more steps, or makes more text"):
        render("{{ 'x' * 1000000000 }}", [], {})
    with pytest.raises(ValueError, match="chat template: it recurses too deep"):
        render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", [], {})
    with pytest.raises(ValueError, match="chat template: ZeroDivisionError"):
        render("{{ 1 // 0 }}", [], {})
    for _ in range(30):
        assert len(render("{{ 'x' * 3000000 }}", [], {})) == 3_000_000
