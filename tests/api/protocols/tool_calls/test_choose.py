"""Lines out of the chat templates of published models."""

from __future__ import annotations

import pytest

from pybatch.api.protocols.tool_calls.call import CallForm
from pybatch.api.protocols.tool_calls.choose import call_form
from pybatch.api.protocols.tool_calls.json_calls import GRANITE, HERMES, LLAMA
from pybatch.api.protocols.tool_calls.mistral import MISTRAL
from pybatch.api.protocols.tool_calls.python_calls import LFM, PYTHON
from pybatch.api.protocols.tool_calls.xml_calls import XML


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (r"""{{- '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' }}""", HERMES),
        (r"""<tool_call>[{"name": "func_name1", "arguments": {"argument1": "value1"}}]</tool_call>""", HERMES),
        (r"""{{- '<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>' }}""", XML),
        (r"""{{- "[TOOL_CALLS] [" }}""", MISTRAL),
        (r"""{{- 'Write <|tool_call|> followed by a JSON list of tools used.' }}""", GRANITE),
        (r"""{{- '<|' + message['role'] + '|>' + '<|tool|>' + message['tools'] + '<|/tool|>' }}""", GRANITE),
        (r"""{{- 'Respond in the format {"name": function name, "parameters": dictionary}.' }}""", LLAMA),
        (r"""{{- "<|python_tag|>" + tool_call.name + ".call(" }}""", LLAMA),
        (r"""{{- '[func_name1(params_name1=params_value1...), func_name2(params)]' }}""", PYTHON),
        (r"""{{- "List of tools: <|tool_list_start|>[" }}""", LFM),
        (r"""{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}""", None),
    ],
)  # fmt: skip
def test_the_template_tells_the_form(template: str, form: CallForm | None) -> None:
    assert call_form(template) is form
