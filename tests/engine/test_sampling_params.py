from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pybatch.api.engine_args import EngineArgs
from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.config import DEFAULTS
from pybatch.model import Decoder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2),
        ("presence_penalty", 3),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0),
        ("logit_bias", {5: 101}),
        ("logit_bias", {"five": 1}),
        ("seed", 2**64),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 7),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("logprobs", -2),
        ("prompt_logprobs", 0.5),
        ("n", 16385),
        ("temperature", 10**400),
        ("ignore_eos", "no"),
        ("detokenize", None),
        ("truncate_prompt_tokens", 0),
        ("output_kind", "delta"),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [1.5]),
        ("bad_words", "word"),
        ("bad_words", [""]),
    ],
)
def test_a_bad_value_names_the_field_what_was_expected_and_what_came(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"SamplingParams: {name}: expected .*, got "):
        SamplingParams(**{name: value})


def test_names_order_and_defaults_are_vllms() -> None:
    assert SamplingParams().max_tokens == 16
    given = SamplingParams(2, 0.1, 0.2, 1.1, 0.8, 0.9, 5, 0.05, 7, "x", [3], True, 20, 1, 2, 3)
    named = SamplingParams(
        n=2,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        temperature=0.8,
        top_p=0.9,
        top_k=5,
        min_p=0.05,
        seed=7,
        stop="x",
        stop_token_ids=[3],
        ignore_eos=True,
        max_tokens=20,
        min_tokens=1,
        logprobs=2,
        prompt_logprobs=3,
    )
    assert given == named
    assert SamplingParams(seed=-1).seed is None


def test_what_only_vllm_has_passes_if_it_asks_for_nothing() -> None:
    assert SamplingParams(skip_clone=True, logits_processors=None) == SamplingParams()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="SamplingParams: thinking_token_budget = 3: known in vLLM, not here"):
        SamplingParams(thinking_token_budget=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"guided_decoding = .*: known in vLLM, not here"):
        SamplingParams(max_tokens=3, guided_decoding={"json": "{}"})  # type: ignore[call-arg]


def test_a_clone_shares_nothing() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 2.0})
    clone = params.clone()
    assert clone == params
    assert isinstance(clone.stop, list)
    clone.stop.append("b")
    assert params.stop == ["a"]


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="min_tokens: expected at most max_tokens = 3, got 4"):
        SamplingParams(max_tokens=3, min_tokens=4)
    with pytest.raises(ValueError, match="detokenize: expected True"):
        SamplingParams(stop="x", detokenize=False)


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(TypeError, match="unknown argument 'max_token'; did you mean 'max_tokens'"):
        SamplingParams(max_token=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="EngineConfig: unknown argument 'max_num_seq'; did you mean 'max_num_seqs'"):
        EngineConfig(max_num_seq=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_seqs", True),
        ("max_num_batched_tokens", 2**70),
        ("max_num_batched_tokens", 8.0),
        ("max_background_tokens", 0),
        ("max_background_tokens", None),
        ("block_size", 16.0),
        ("block_size", "16"),
        ("memory_utilization", float("nan")),
        ("memory_utilization", "half"),
        ("enable_prefix_caching", "no"),
        ("predict_lengths", 1),
        ("seed", 2**64),
        ("seed", 1.0),
        ("block_size", 12),
        ("memory_utilization", 0),
        ("memory_utilization", 1.5),
        ("kv_cache_dtype", "fp4"),
        ("policy", "greedy"),
        ("num_kv_blocks", -1),
        ("max_model_len", 1.5),
    ],
)
def test_bad_engine_settings_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected "):
        EngineConfig(**{name: value})


def test_engine_settings_may_be_numpys() -> None:
    assert type(EngineConfig(max_num_seqs=np.int64(3)).max_num_seqs) is int


def test_defaults_are_the_devices() -> None:
    def sizes(config: EngineConfig) -> tuple[int, int, float]:
        return config.max_num_seqs, config.max_num_batched_tokens, config.memory_utilization

    for config in (EngineConfig(), EngineArgs("some model"), EngineArgs(**vars(EngineArgs("some model")))):
        assert sizes(config.on("cpu")) == (64, 512, 0.5)
        assert sizes(config.on("cuda")) == (256, 2048, 0.9)
        assert type(config.on("cuda")) is type(config)
    given = EngineConfig(max_num_seqs=64, memory_utilization=0.5)
    assert sizes(given.on("cuda")) == (64, 2048, 0.5)
    assert sizes(EngineArgs("some model", gpu_memory_utilization=0.5).on("cuda")) == (256, 2048, 0.5)
    assert given.on("cuda").on("cpu") == given.on("cuda")


def test_an_engine_has_its_devices_defaults(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEFAULTS, "cpu", {**DEFAULTS["cpu"], "max_num_seqs": 7})
    config = Engine(decoder, None, EngineConfig(max_num_batched_tokens=100)).config
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.memory_utilization) == (7, 100, 0.5)


def test_stops_may_be_one_string_or_several() -> None:
    assert SamplingParams().stop_strings == ()
    assert SamplingParams(stop="a").stop_strings == ("a",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")
