from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pybatch import SamplingParams, StreamingLLM
from pybatch.engine.kv_policies import as_json, kv_policy


def test_an_object_and_a_class_are_the_same_policy() -> None:
    assert kv_policy({"type": "streaming_llm", "window": 9}) == StreamingLLM(sinks=4, window=9)
    assert kv_policy(StreamingLLM()) == StreamingLLM()
    assert kv_policy(None) is None
    assert kv_policy(as_json(StreamingLLM(window=9))) == StreamingLLM(window=9)
    assert as_json({"type": "streaming_llm"}) == {"type": "streaming_llm", "sinks": 4, "window": 1024}
    assert as_json(None) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("streaming_llm", "expected None, an object with a type of 'streaming_llm'.*, got 'streaming_llm'"),
        ({}, "expected a type of 'streaming_llm'.*, got None"),
        ({"type": "h3o"}, "expected a type of 'streaming_llm'.*, got 'h3o'"),
        ({"type": ["streaming_llm"]}, "expected a type of"),
        ({"type": "streaming_llm", "windows": 3}, "streaming_llm: unknown argument 'windows'; did you mean 'window'"),
        ({"type": "streaming_llm", "window": 0}, "StreamingLLM: window: expected an integer of at least 1 .*, got 0"),
        (
            {"type": "streaming_llm", "sinks": True},
            "StreamingLLM: sinks: expected an integer of at least 0 .*, got True",
        ),
        ({"type": "streaming_llm", "window": 2.5}, "StreamingLLM: window: expected an integer .*, got 2.5"),
        ({"type": "streaming_llm", "window": 2**31}, "StreamingLLM: window: expected an integer .* below 2"),
    ],
)
def test_what_is_no_policy_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^SamplingParams: kv_policy: {message}"):
        SamplingParams(kv_policy=value)


def test_numbers_may_be_numpys() -> None:
    policy = StreamingLLM(window=np.int64(7))  # type: ignore[arg-type]
    assert type(policy.window) is int
