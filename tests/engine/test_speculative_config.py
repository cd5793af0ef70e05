from __future__ import annotations

import re
from typing import Any

import pytest

from pybatch.engine import EngineConfig
from pybatch.engine.speculative_config import SpeculativeConfig


def test_it_may_be_a_dict_or_json_or_itself() -> None:
    made = SpeculativeConfig(method="ngram", num_speculative_tokens=3, prompt_lookup_max=4)
    given = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    for each in (made, given, made.text):
        assert EngineConfig(speculative_config=each).speculation == made
    assert EngineConfig().speculation is None


def test_what_is_not_given_follows_from_what_is() -> None:
    assert SpeculativeConfig().method == "ngram"
    assert SpeculativeConfig(model="some/model").method == "draft_model"
    for given, bounds in (({}, (2, 5)), ({"max": 1}, (1, 1)), ({"min": 7}, (7, 7)), ({"min": 1, "max": 9}, (1, 9))):
        made = SpeculativeConfig(**{f"prompt_lookup_{end}": bound for end, bound in given.items()})
        assert (made.prompt_lookup_min, made.prompt_lookup_max) == bounds


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "eagle"}, "method: expected one of 'ngram', 'suffix', 'draft_model', got 'eagle'"),
        ({"method": "draft_model"}, "model: expected a draft model, since the method is 'draft_model', got None"),
        ({"method": "ngram", "model": "x"}, "model: expected None, since the method is 'ngram', got 'x'"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens: expected an integer from 1 to 64, got 0"),
        ({"num_speculative_tokens": True}, "num_speculative_tokens: expected an integer from 1 to 64, got True"),
        ({"prompt_lookup_max": 2, "prompt_lookup_min": 3}, "prompt_lookup_min: expected an integer from 1 to 2, got 3"),
        ({"prompt_lookup_max": "x"}, "prompt_lookup_max: expected an integer from 1 to 1024, got 'x'"),
        (
            {"method": "suffix", "prompt_lookup_max": 2},
            "prompt_lookup_max: expected None, since the method is 'suffix'",
        ),
        ({"adaptive": 1}, "adaptive: expected True or False, got 1"),
        ("ngram", "speculative_config: expected a dict, or one as JSON"),
        (7, "speculative_config: expected a dict, or one as JSON"),
    ],
)
def test_a_bad_value_is_named(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        EngineConfig(speculative_config=given)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(TypeError, match="unknown argument 'tokens'"):
        EngineConfig(speculative_config={"tokens": 3})
