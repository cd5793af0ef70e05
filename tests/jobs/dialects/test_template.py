from __future__ import annotations

import pytest

from pybatch.api.protocols.request_error import RequestError
from pybatch.jobs.dialects.template import Template


def test_a_template_takes_text_as_it_is_and_the_rest_as_json() -> None:
    template = Template("{{{text}}} {n} {list} {none}")
    fields = {"text": "{n} é", "n": 1.5, "list": ["é", {"a": True}], "none": None}
    assert template.fill(fields) == '{{n} é} 1.5 ["é", {"a": true}] null'


@pytest.mark.parametrize("text", ["{}", "{a!r}", "{a:>3}", "{a", "a}", 'say {"x": 1}'])
def test_what_is_no_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="for braces that are text"):
        Template(text)


def test_an_unknown_field_is_named_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="asks for 'txet'; the row has 'text', 'id'") as caught:
        Template("{txet}").fill({"text": "a", "id": 1})
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "txet")
    with pytest.raises(RequestError, match="the row has nothing"):
        Template("{txet}").fill({})
