"""Whatever JSON a row holds, a dialect takes it or says what is wrong, and can write its result."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch import SamplingParams
from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.protocols import anthropic_requests, openai_requests
from pybatch.api.protocols.sampling import NAMES
from pybatch.jobs.check import check_row
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.dialects.anthropic_batch import AnthropicBatch
from pybatch.jobs.dialects.openai_batch import OpenAIBatch
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.rows import Row

ENTRY = {"token_id": 1, "logprob": -0.5, "rank": 1, "decoded_token": "a"}
ANSWER = Answer(3, (Sample("one", 2, "stop", logprobs=[[ENTRY]]), Sample("two", 1, "length", 5, [[ENTRY]])))

numbers = st.one_of(st.integers(-3, 3), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=3), st.sampled_from(["user", "POST", "text"]))
keys = st.one_of(st.sampled_from(["role", "content", "type", "text", "tool_calls", "function"]), st.text(max_size=2))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
usual = {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=3)}
message = st.fixed_dictionaries(usual)
odd_message = st.fixed_dictionaries(usual, optional={"tool_calls": values, "name": values})
messages = st.one_of(st.lists(message, min_size=1, max_size=2), st.lists(odd_message, max_size=2), values)


def objects(names: Any, **usual: Any) -> Any:
    """With some of the names that count, most often with values that are usual."""
    some = st.one_of(st.just({}), st.dictionaries(st.sampled_from(sorted(names)), values, max_size=2))
    return st.builds(lambda base, more: base | more, st.fixed_dictionaries(usual), some)


MODEL = {"model": st.just("m")}
CHAT = openai_requests.CHAT | openai_requests.CHAT_ASKING_NOTHING.keys()
COMPLETION = openai_requests.COMPLETION | openai_requests.COMPLETION_ASKING_NOTHING.keys()
chat = objects(CHAT, **MODEL, messages=messages)
completion = objects(COMPLETION, **MODEL, prompt=st.one_of(st.text(max_size=3), values))
MESSAGE = anthropic_requests.MessageFields.__annotations__.keys() | anthropic_requests.ASKING_NOTHING.keys()
params = objects(MESSAGE, **MODEL, max_tokens=st.just(3), messages=messages)
ROW = {"custom_id": st.just("a"), "method": st.just("POST")}
openai_rows = [
    objects(["custom_id", "method", "url", "body"], **ROW, url=st.just(url), body=st.one_of(body, values))
    for url, body in (("/v1/chat/completions", chat), ("/v1/completions", completion))
]
anthropic_row = objects(["custom_id", "params"], **ROW, params=params)
plain_row = objects({*NAMES, "prompt", "messages", "sampling_params", "row"}, prompt=st.text(max_size=3), x=values)


@pytest.mark.parametrize(
    ("dialect", "rows"),
    [
        (PlainDialect(), plain_row),
        (PlainDialect(Template("{x} {prompt}"), "s"), plain_row),
        (OpenAIBatch(0), st.one_of(openai_rows)),
        (AnthropicBatch(), anthropic_row),
    ],
    ids=["plain", "template", "openai", "anthropic"],
)
def test_any_row_is_taken_or_told_what_is_wrong(dialect: Dialect, rows: Any) -> None:
    taken = 0

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(rows)
    def check(fields: dict[str, Any]) -> None:
        nonlocal taken
        row = Row(0, "line 1", 1, fields)
        asked = check_row(row, dialect, SamplingParams(max_tokens=4))
        outcome = asked if isinstance(asked, Failure) else ANSWER
        taken += outcome is ANSWER
        result = dialect.result(row, outcome)
        assert json.loads(json.dumps(result, allow_nan=False)) == result

    check()
    assert taken > 10
