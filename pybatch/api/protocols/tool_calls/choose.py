"""The form of a model's calls, by what its chat template says."""

from __future__ import annotations

import re

from pybatch.api.protocols.tool_calls.call import CallForm
from pybatch.api.protocols.tool_calls.forced import ForcedForm
from pybatch.api.protocols.tool_calls.json_calls import GRANITE, HERMES, LFM_JSON, LLAMA, PLAIN
from pybatch.api.protocols.tool_calls.mistral import MISTRAL
from pybatch.api.protocols.tool_calls.python_calls import LFM, PYTHON
from pybatch.api.protocols.tool_calls.xml_calls import XML

SIGNS: tuple[tuple[str, CallForm], ...] = (
    (r"<tool_call>.*<function=|<function=.*<tool_call>", XML),
    (r"\[TOOL_CALLS\]", MISTRAL),
    (r"<\|tool_call\|>|<\|/tool\|>", GRANITE),
    (r"<\|tool_call_start\|>|<\|tool_list_start\|>", LFM),
    (r"<tool_call>", HERMES),
    (r"\[\s*func_name1?\(|\[\w+\(\w+=\w+", PYTHON),
    (r"<\|python_tag\|>|<\|python_start\|>", LLAMA),
    (r"""["']name["']\\?: function name""", LLAMA),
)
"""Patterns, of which the first that is in a template tells the form."""


def call_form(template: str) -> CallForm | None:
    """None if the template says nothing of calls, or in a form that is not known here."""
    return next((form for sign, form in SIGNS if re.search(sign, template, re.DOTALL)), None)


FORCED: dict[CallForm | None, ForcedForm] = {
    **{form: form for form in (GRANITE, HERMES, LLAMA, MISTRAL)},
    XML: HERMES,
    LFM: LFM_JSON,
    PYTHON: PLAIN,
    None: PLAIN,
}
"""By a model's form that in which it is held to calls: one of JSON, to which schemas apply."""
