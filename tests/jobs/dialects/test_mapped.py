from __future__ import annotations

from typing import Any

from pybatch.api.inputs import Conversation
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.jobs.checked_rows import RowOptions
from pybatch.jobs.dialect import request_of
from pybatch.jobs.dialects.mapped import MappedRows
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.rows import Row
from pybatch.jobs.sources import open_source

ANSWER = Answer(3, (Sample("yes", 2, "stop"),))


def mapped(**output: str) -> MappedRows:
    return MappedRows(Template("Is {text} good?"), output={name: Template(text) for name, text in output.items()})


def row(**fields: Any) -> Row:
    return Row(4, "line 5", 1, fields)


def test_a_result_has_the_fields_that_are_asked_for_and_no_others() -> None:
    dialect = mapped(key="{id}", verdict="{response}", note="{id}: {finish_reason}", usage="{usage}", fixed="v1")
    fields = row(id=7, text="it", other="x")
    assert dialect.request(fields).prompts == (Conversation([{"role": "user", "content": "Is it good?"}]),)
    assert dialect.result(fields, ANSWER) == {
        "key": 7,
        "verdict": "yes",
        "note": "7: stop",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "fixed": "v1",
    }


def test_a_row_that_failed_has_null_for_what_its_answer_would_have_filled() -> None:
    dialect = mapped(key="{id}", verdict="{response}", note="{id}: {finish_reason}")
    result = dialect.result(row(id=7, text="it"), Failure("too long"))
    assert result == {"key": 7, "verdict": None, "note": None, "error": "line 5: too long"}


def test_a_field_that_neither_row_nor_answer_has_is_the_row_s_error() -> None:
    failure = request_of(mapped(verdict="{respons}"), row(text="it"))
    assert isinstance(failure, Failure)
    assert failure.message.startswith("output 'verdict' asks for 'respons'; a result has 'text', 'row', 'response'")


def test_options_make_it() -> None:
    options = RowOptions(prompt_template="{a}", output={"b": "{response}"})
    dialect, _ = options.dialect(open_source([{"a": 1}]), created=0)
    assert isinstance(dialect, MappedRows)
    assert dialect.result(row(a=1), ANSWER) == {"b": "yes"}
