from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pybatch import SamplingParams
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.sampling_params import RequestOutputKind
from pybatch.jobs.answers.cache_keys import CacheKeys

TOKENS = [5, 6, 7, 8]
KEYS = CacheKeys("model", max_model_len=100, engine_seed=0)
OTHER: dict[str, Any] = {
    "n": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "min_p": 0.5,
    "seed": 2,
    "stop": "x",
    "stop_token_ids": [3],
    "ignore_eos": True,
    "max_tokens": 17,
    "min_tokens": 1,
    "logprobs": 0,
    "prompt_logprobs": 0,
    "detokenize": False,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
    "truncate_prompt_tokens": 3,
    "output_kind": RequestOutputKind.DELTA,
    "logit_bias": {3: 1.0},
    "allowed_token_ids": [3],
    "bad_words": ["x"],
    "use_beam_search": True,
    "best_of": 2,
    "length_penalty": 0.5,
    "early_stopping": True,
    "structured_outputs": {"regex": "a"},
    "speculate": False,
    "kv_policy": {"type": "streaming_llm"},
}
NO_ANSWER_DEPENDS_ON = {"output_kind", "speculate"}
DRAWS = {"temperature", "top_p", "top_k", "min_p", "seed"}


def key(tokens: list[int] = TOKENS, index: int = 0, **params: Any) -> bytes:
    return KEYS.key(tokens, SamplingParams(**params), index)


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_every_parameter_that_an_answer_depends_on_is_in_the_key(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    others = {"use_beam_search": True} if name == "best_of" else {}
    other = {**others, name: LoRARequest("a", 1, str(tmp_path)) if name == "lora_request" else OTHER[name]}
    assert (key(seed=1, **others) == key(**{"seed": 1, **other})) == (name in NO_ANSWER_DEPENDS_ON)
    if name != "temperature":
        same = name in DRAWS | NO_ANSWER_DEPENDS_ON
        assert (key(temperature=0, index=1) == key(temperature=0, index=2, **other)) == same


def test_the_same_request_has_the_same_key_however_it_is_put() -> None:
    assert key(temperature=1, seed=1) == key(temperature=1.0, seed=np.int64(1 + 2**40) - 2**40)
    assert key(seed=-5) == key(seed=2**64 - 5)
    assert key(use_beam_search=True, seed=1) == key(use_beam_search=True, temperature=0, index=2)
    assert key(early_stopping="never") != key(early_stopping=True)
    assert key(seed=1, kv_policy=StreamingLLM()) == key(seed=1, kv_policy={"type": "streaming_llm", "sinks": 4})
    assert key(seed=1, stop="x", stop_token_ids=[3, 2]) == key(seed=1, stop=["x"], stop_token_ids=[2, np.int32(3), 2])
    assert key(seed=1, logit_bias={3: 1, 4: 2}) == key(seed=1, logit_bias={4: 2.0, np.int64(3): 1.0})
    assert (
        key(max_tokens=None, temperature=0) == key(max_tokens=96, temperature=0) == key(max_tokens=500, temperature=0)
    )
    assert key([1, 2, *TOKENS], temperature=0, truncate_prompt_tokens=4) == key(temperature=0)


def test_other_tokens_models_contexts_and_seeds_have_other_keys() -> None:
    params = SamplingParams(max_tokens=None)
    keys = {
        CacheKeys(model, max_model_len=context, engine_seed=seed).key(tokens, params, index)
        for model in ("a", "b")
        for context in (100, 200)
        for seed in (0, 1)
        for tokens in ([1, 2, 3], [1, 2, 4], [1, 2, 3, 0])
        for index in (0, 1)
    }
    assert len(keys) == 2 * 2 * 2 * 3 * 2


def test_a_list_that_has_changed_is_seen() -> None:
    params = SamplingParams(temperature=0, stop_token_ids=[3])
    assert params.stop_token_ids is not None
    before = KEYS.key(TOKENS, params, 0)
    params.stop_token_ids.append(4)
    assert KEYS.key(TOKENS, params, 0) != before
