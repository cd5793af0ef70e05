"""Against the types of the anthropic package."""

from __future__ import annotations

import pytest
from anthropic.types import Message
from anthropic.types.shared import ErrorResponse

from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.api.protocols.anthropic_responses import error_response, message_response


@pytest.mark.parametrize(
    ("sample", "reason", "sequence"),
    [
        (Sample("x", 3, "stop"), "end_turn", None),
        (Sample("x", 3, "stop", 7), "end_turn", None),
        (Sample("x", 3, "stop", "END"), "stop_sequence", "END"),
        (Sample("x", 8, "length"), "max_tokens", None),
        (Sample("x", 5, "length"), "model_context_window_exceeded", None),
    ],
)
def test_a_message_is_anthropics(sample: Sample, reason: str, sequence: str | None) -> None:
    body = message_response({"max_tokens": 8}, Answer(4, (sample,)), id="x", model="m")
    read = Message.model_validate(body, strict=True)
    assert read.model_dump(exclude_unset=True) == body
    assert not read.model_extra
    assert (read.id, read.stop_reason, read.stop_sequence) == ("msg_x", reason, sequence)
    assert (read.usage.input_tokens, read.usage.output_tokens) == (4, sample.tokens)


def test_tokens_of_the_prefix_cache_are_told_apart() -> None:
    body = message_response(
        {"max_tokens": 8}, Answer(40, (Sample("x", 3, "stop"),)), id="x", model="m", cached_tokens=32
    )
    used = Message.model_validate(body, strict=True).usage
    assert (used.input_tokens, used.cache_read_input_tokens, used.cache_creation_input_tokens) == (8, 32, 0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_an_error_is_anthropics(status: int, kind: str) -> None:
    body = error_response(Failure("no", "invalid_value"), status=status, id="x")
    assert body == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req_x"}
    if kind != "request_too_large":  # which the package has no type of
        read = ErrorResponse.model_validate(body, strict=True)
        assert read.model_dump(exclude_unset=True) == body
