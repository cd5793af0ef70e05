from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import pybatch
from pybatch import LLM, AsyncLLM, EngineArgs, RequestOutput, SamplingParams
from pybatch.api.fair_lock import FairLock
from pybatch.api.interrupts import deferred_interrupts
from pybatch.api.vllm_names import ARGUMENTS
from pybatch.engine import EngineConfig
from pybatch.engine.arguments import described_fields, warn_of_vllm_only
from pybatch.engine.detokenizer import Detokenizer
from pybatch.engine.execution.model_runner import ModelRunner

GREEDY = SamplingParams(temperature=0, max_tokens=8)
LONG = SamplingParams(temperature=0, max_tokens=450, ignore_eos=True)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=256, max_num_seqs=8, max_num_batched_tokens=64, threads=1)


@pytest.fixture
def llm(loaded: LLM) -> Iterator[LLM]:
    """Whatever a test does, it leaves no request and no KV block behind."""
    yield loaded
    assert loaded.session.idle
    assert not loaded.engine.has_unfinished()
    loaded.engine.check_integrity()


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def test_outputs_are_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [f"{'word ' * (i % 5)}{i}" for i in range(30)]
    params = [SamplingParams(temperature=0, max_tokens=1 + i % 7, ignore_eos=True) for i in range(30)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == prompts
    assert [output.request_id for output in outputs] == [str(i) for i in range(30)]
    assert [len(ids) for ids in tokens(outputs)] == [1 + i % 7 for i in range(30)]
    assert tokens(outputs[7:8]) == tokens(llm.generate(prompts[7], params[7]))


def test_a_prompt_may_be_text_or_ids_or_a_dict(llm: LLM) -> None:
    text = "Hello there"
    ids = llm.get_tokenizer().encode(text)
    expected = tokens(llm.generate(text, GREEDY))
    for prompt in (
        ids,
        [ids],
        {"prompt": text},
        [{"prompt_token_ids": ids}],
        {"prompt": "said", "prompt_token_ids": ids},
    ):
        assert tokens(llm.generate(prompt, GREEDY)) == expected
    assert tokens(llm.generate([text, ids, {"prompt": text}], GREEDY)) == expected * 3
    assert llm.generate([], GREEDY) == []


BAD_PROMPTS: list[tuple[Any, str]] = [
    ("", "at least one token"),
    ("x" * 600, "600 tokens"),
    ("\ud800", "surrogates not allowed"),
    (5, "got int"),
    (None, "got None"),
    ([1, "two"], "list of token ids"),
    ([0, 99999], "99999 is not in the vocabulary"),
    ({"promt": "x"}, "'promt'"),
    ({"prompt": 7}, "got int"),
    (b"bytes", "got bytes"),
]


def test_a_bad_prompt_fails_alone(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    prompts = list(itertools.chain.from_iterable((bad, f"good {i}") for i, (bad, _) in enumerate(BAD_PROMPTS)))
    outputs = llm.generate(prompts, GREEDY)
    for output, (_, says) in zip(outputs[::2], BAD_PROMPTS, strict=True):
        assert output.error is not None
        assert says in output.error
        assert output.finished
        assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("", "error")
    assert all(output.error is None for output in outputs[1::2])
    assert tokens(outputs[1::2]) == tokens(llm.generate(prompts[1::2], GREEDY))
    assert "prompt 2: " in caplog.text


def test_a_lone_bad_prompt_does_not_raise_either(llm: LLM) -> None:
    (output,) = llm.generate("x" * 600, GREEDY)
    assert output.error is not None
    assert "max_model_len = 512" in output.error


def test_without_params_an_output_fills_the_context(llm: LLM) -> None:
    (output,) = llm.generate("x" * 490)
    assert len(output.outputs[0].token_ids) == 512 - 490
    assert output.outputs[0].finish_reason == "length"
    (output,) = llm.generate("x" * 490, SamplingParams())
    assert len(output.outputs[0].token_ids) == 16


def test_wrong_arguments_raise(llm: LLM) -> None:
    with pytest.raises(TypeError, match="prompts: expected text, token ids"):
        llm.generate(5, GREEDY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one for each of 2 prompts, got 3"):
        llm.generate(["a", "b"], [GREEDY] * 3)
    for params in ({"temperature": 0}, "greedy", 5):
        with pytest.raises(TypeError, match="sampling_params: expected SamplingParams, or one for each prompt, got"):
            llm.generate("a", params)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="or else prompt_token_ids"):
        llm.generate("a", GREEDY, prompt_token_ids=[1])
    with pytest.raises(TypeError, match="messages: expected a list"):
        llm.chat("Hello", GREEDY)  # type: ignore[arg-type]


def test_chat_goes_through_the_template(llm: LLM) -> None:
    text = "<|role|>system: Be brief.<|end|><|role|>user: Hello<|end|><|role|>assistant: "
    (output,) = llm.chat(CHAT, GREEDY)
    assert output.prompt == text
    assert output.prompt_token_ids[:2] == [1, *llm.get_tokenizer().encode("s")]
    in_parts = [CHAT[0], {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert [each.prompt for each in llm.chat([CHAT, in_parts], GREEDY)] == [text, text]
    assert llm.chat(CHAT, GREEDY, add_generation_prompt=False)[0].prompt == text.removesuffix("<|role|>assistant: ")
    assert (
        llm.chat(CHAT, GREEDY, continue_final_message=True)[0].prompt == text.partition("<|end|><|role|>assistant")[0]
    )
    (output,) = llm.chat(CHAT, GREEDY, chat_template="{{ tools[0].name }}", tools=[{"name": "add"}])
    assert output.prompt == "add"
    assert llm.chat(CHAT, GREEDY, tools=[])[0].prompt == text
    template = "{{ messages[-1].content }}{{ mark }}"
    (output,) = llm.chat(CHAT, GREEDY, chat_template=template, chat_template_kwargs={"mark": "!"})
    assert output.prompt == "Hello!"


def test_a_bad_conversation_fails_alone(llm: LLM) -> None:
    bad: list[Any] = [
        [],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "tool", "content": "x"}],
        "text",
    ]
    outputs = llm.chat([*bad, CHAT], GREEDY)
    assert [output.error is None for output in outputs] == [False] * len(bad) + [True]
    assert "no tools here" in str(outputs[4].error)


def test_unknown_and_impossible_engine_arguments(tiny_model: Path) -> None:
    with pytest.raises(TypeError, match="'max_num_seq'; did you mean 'max_num_seqs'"):
        LLM(tiny_model, max_num_seq=3)
    for name, value in (
        ("max_num_seqs", 0),
        ("block_size", 7),
        ("memory_utilization", 1.5),
        ("kv_cache_dtype", "int3"),
        ("dtype", "float8"),
        ("quantization", "int2"),
        ("max_model_len", 100_000),
        ("policy", "dynamc"),
        ("threads", 0),
        ("device", "tpu"),
        ("device", "cuda:99"),
    ):
        with pytest.raises(ValueError, match=name):
            LLM(tiny_model, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two names of one argument"):
        LLM(tiny_model, memory_utilization=0.1, gpu_memory_utilization=0.1)
    with pytest.raises(ValueError, match="nowhere"):
        LLM("nowhere/to/be found")


def test_engine_arguments_are_written_once() -> None:
    """What LLM takes, says and passes on are the fields of EngineArgs."""
    takes = signature(LLM).parameters
    assert takes == signature(AsyncLLM).parameters == signature(EngineArgs).parameters
    assert takes["block_size"].default == EngineConfig().block_size
    assert takes["block_size"].annotation is takes["max_num_seqs"].annotation is int
    described = {field.name: field.help for field in described_fields(EngineArgs)}
    assert {*described, "gpu_memory_utilization"} == set(takes)
    assert all(described.values())
    said = " ".join(str(LLM.__init__.__doc__).split())
    assert all(f"{name}: {help}" in said for name, help in described.items())
    assert EngineArgs("m", gpu_memory_utilization=0.2).memory_utilization == 0.2


def test_arguments_that_only_vllm_has(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that ask for nothing pass, with one warning; those that ask for something are refused by name."""
    nothing: dict[str, Any] = {
        "data_parallel_size": 1, "trust_remote_code": True, "enforce_eager": False,
        "load_format": "auto", "disable_log_stats": True, "revision": None,
        "tokenizer_mode": "auto", "enable_prompt_adapter": False, "kv_transfer_config": None, "hf_overrides": {},
    }  # fmt: skip
    warn_of_vllm_only.cache_clear()
    for _ in range(2):
        assert EngineArgs(tiny_model, **nothing) == EngineArgs(tiny_model)
    warned = [record.getMessage() for record in caplog.records]
    assert sorted(warned) == sorted(f"EngineArgs: {name} is vLLM's and changes nothing here" for name in nothing)
    for name, value in (
        ("data_parallel_size", 2),
        ("enable_prompt_adapter", True),
        ("kv_transfer_config", {"kv_connector": "x"}),
        ("tokenizer_mode", "slow"),
        ("revision", "main"),
        ("task", "classify"),
    ):
        with pytest.raises(TypeError, match=f"{name} = .*: known in vLLM, not here"):
            LLM(tiny_model, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'rtn' is known in vLLM, not here; expected None, 'int8'"):
        LLM(tiny_model, quantization="rtn")
    with pytest.raises(ValueError, match=r"'awq' asks for a checkpoint of it, and .* is not quantised so"):
        LLM(tiny_model, quantization="awq")
    assert {EngineArgs("m", dtype=name).dtype for name in ("half", torch.float16, "float16")} == {"float16"}  # type: ignore[arg-type]
    left = dict.fromkeys(("max_num_seqs", "max_num_batched_tokens", "block_size", "enable_prefix_caching", "seed"))
    assert EngineArgs("m", **left) == EngineArgs("m")  # type: ignore[arg-type]
    every = dict.fromkeys(field.name for field in fields(EngineArgs) if field.name != "model")
    assert EngineArgs("m", **every) == EngineArgs("m")  # type: ignore[arg-type]
    given = EngineArgs("m", memory_utilization=None, gpu_memory_utilization=0.2)  # type: ignore[arg-type]
    assert given.memory_utilization == 0.2
    assert pybatch.generate([5], tiny_model, num_kv_blocks=64, max_tokens=1, tensor_parallel_size=1)[0].error is None
    assert not ARGUMENTS.keys() & signature(EngineArgs).parameters.keys()


def test_methods_that_only_vllm_has(llm: LLM, tiny_model: Path) -> None:
    for name in ("classify", "encode", "reward", "collective_rpc", "sleep"):
        assert not hasattr(llm, name)
        with pytest.raises(AttributeError, match=f"LLM.{name}: known in vLLM, not here"):
            getattr(llm, name)
    with pytest.raises(AttributeError, match="'LLM' object has no attribute 'generat'"):
        llm.generat  # type: ignore[attr-defined]  # noqa: B018
    for call in (
        lambda: llm.chat(CHAT, GREEDY, chat_template_content_format="openai"),  # type: ignore[arg-type]
        lambda: llm.get_tokenizer("adapter"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="known in vLLM, not here"):
            call()
    assert tokens(llm.generate(prompts="x", sampling_params=GREEDY, use_tqdm=print, lora_request=None, priority=None))
    assert tokens(llm.generate(prompt_token_ids=[[5], [6]], sampling_params=GREEDY)) == tokens(
        llm.generate([[5], [6]], GREEDY)
    )
    assert llm.llm_engine is llm.engine
    made = LLM.from_engine_args(EngineArgs(model=tiny_model, num_kv_blocks=64, gpu_memory_utilization=0.3))
    assert (made.engine.num_kv_blocks, made.engine.config.memory_utilization) == (64, 0.3)
    assert isinstance(llm.generate(pybatch.TokensPrompt(prompt_token_ids=[5]), GREEDY)[0], RequestOutput)


def test_metrics_and_the_prefix_cache(llm: LLM) -> None:
    prompt = [5] * 100

    def cached() -> int:
        return llm.generate(prompt, GREEDY)[0].num_cached_tokens

    cached()
    assert cached() == 99
    assert llm.reset_prefix_cache()
    assert cached() == 0
    outputs = llm.stream([prompt, prompt], [SamplingParams(max_tokens=1), LONG])
    next(outputs)
    assert not llm.reset_prefix_cache()
    outputs.close()
    metrics = {metric.name: metric.value for metric in llm.get_metrics()}
    assert metrics["pybatch:output_tokens"] == llm.engine.metrics.output_tokens > 0


def test_a_prefix_is_pinned_until_its_release(tiny_model: Path) -> None:
    llm = LLM(tiny_model, num_kv_blocks=64, threads=1, max_num_seqs=4)
    prefix = "to be or not to be, that is the question: "
    with llm.pin_prefix(prefix) as pinned:
        count = len(pinned.prompt_token_ids)
        assert pinned.num_blocks == -(-count // 16) == llm.engine.num_kv_blocks_pinned
        assert repr(pinned) == f"<PinnedPrefix of {count} tokens in {pinned.num_blocks} KV blocks>"
        assert llm.reset_prefix_cache()
        (output,) = llm.generate([prefix + "whether"], GREEDY, use_tqdm=False)
        assert output.num_cached_tokens >= count - 1  # the tokens may differ where the texts meet
    assert pinned.num_blocks == llm.engine.num_kv_blocks_used == 0
    messages = [{"role": "system", "content": "Be brief."}]
    system = llm.pin_prefix(messages)
    (answer,) = llm.chat([*messages, {"role": "user", "content": "Hello"}], GREEDY, use_tqdm=False)
    assert answer.num_cached_tokens == len(system.prompt_token_ids)
    system.release()
    for wrong, reason in (("", "at least one token"), ([-3], "not in the vocabulary"), ([5] * 10**4, "do not fit")):
        with pytest.raises(ValueError, match=reason):
            llm.pin_prefix(wrong)
    assert llm.engine.num_kv_blocks_used == 0


def test_sampling_defaults_are_the_models(tiny_model: Path, tmp_path: Path) -> None:
    def defaults(of_model: dict[str, Any], **arguments: Any) -> SamplingParams:
        model = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(tiny_model, model)
        (model / "generation_config.json").write_text(json.dumps(of_model))
        return LLM(model, num_kv_blocks=64, **arguments).get_default_sampling_params()

    plain = SamplingParams(max_tokens=None)
    given = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
    assert defaults({**given, "max_new_tokens": 7, "do_sample": True}) == SamplingParams(**given, max_tokens=7)
    assert defaults({"temperature": None}) == plain
    assert defaults(given, generation_config="vllm") == plain
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "generation_config.json").write_text('{"temperature": 0.25}')
    assert defaults(given, generation_config=elsewhere) == SamplingParams(temperature=0.25, max_tokens=None)
    with pytest.raises(
        ValueError, match=r"generation_config\.json: SamplingParams: top_p: .* got 7; generation_config="
    ):
        defaults({"top_p": 7})
    with pytest.raises(ValueError, match="generation_config: expected 'auto', 'vllm' or a folder"):
        defaults({}, generation_config=tmp_path / "nowhere")

    greedy = tmp_path / "0"
    (greedy / "generation_config.json").write_text('{"temperature": 0, "max_new_tokens": 8}')
    llm = LLM(greedy, num_kv_blocks=64)
    assert tokens(llm.generate("Hello")) == tokens(llm.generate("Hello", GREEDY))
    assert len(tokens(pybatch.generate("Hello", greedy, num_kv_blocks=64, ignore_eos=True))[0]) == 8


def test_generate_takes_arguments_of_both(tiny_model: Path, llm: LLM) -> None:
    (output,) = pybatch.generate(
        "Hello", model=tiny_model, temperature=0, max_tokens=8, num_kv_blocks=64, gpu_memory_utilization=0.2
    )
    assert tokens([output]) == tokens(llm.generate("Hello", GREEDY))
    with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
        pybatch.generate("Hello", model=tiny_model, temprature=0)


def test_the_seed_decides_the_draws(tiny_model: Path) -> None:
    def draw(seed: int) -> list[list[int]]:
        llm = LLM(tiny_model, seed=seed, num_kv_blocks=64)
        return tokens(llm.generate(["a", "a", "b"], SamplingParams(max_tokens=12, ignore_eos=True)))

    first = draw(1)
    assert draw(1) == first
    assert draw(2) != first
    assert first[0] != first[1]


def test_without_a_tokenizer(tiny_model: Path, llm: LLM) -> None:
    bare = LLM(tiny_model, skip_tokenizer_init=True, num_kv_blocks=64)
    ids = llm.get_tokenizer().encode("Hello")
    by_ids, by_text = bare.generate([ids, "Hello"], GREEDY)
    assert tokens([by_ids]) == tokens(llm.generate("Hello", GREEDY))
    assert by_ids.outputs[0].text == ""
    assert "needs a tokenizer" in str(by_text.error)
    with pytest.raises(ValueError, match="without one"):
        bare.get_tokenizer()


def test_stream_yields_what_has_finished(llm: LLM) -> None:
    short = SamplingParams(temperature=0, max_tokens=1)
    outputs = list(llm.stream(["long one", "short"], [LONG, short]))
    assert [output.request_id for output in outputs] == ["1", "0"]
    assert tokens([outputs[0]]) == tokens(llm.generate("short", short))


def test_stream_draws_prompts_as_there_is_room(llm: LLM) -> None:
    drawn = 0

    def prompts() -> Iterator[str]:
        nonlocal drawn
        for drawn in itertools.count(1):
            yield f"prompt {drawn}"

    outputs = llm.stream(prompts(), GREEDY)
    for _ in range(20):
        next(outputs)
    outputs.close()
    assert 20 <= drawn <= 20 + 3 * 8
    assert llm.session.idle


def test_partial_outputs_grow(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    outputs = list(llm.stream("Hello", params, partial=True))
    assert [len(ids) for ids in tokens(outputs)] == list(range(1, 21))
    assert [output.finished for output in outputs] == [False] * 19 + [True]
    for earlier, later in itertools.pairwise(outputs):
        assert later.outputs[0].text.startswith(earlier.outputs[0].text)
    assert outputs[-1].outputs == llm.generate("Hello", params)[0].outputs


def test_a_call_within_a_stream(llm: LLM) -> None:
    prompts = [f"prompt {i}" for i in range(12)]
    seen = {}
    for output in llm.stream(prompts, GREEDY):
        seen[output.request_id] = output
        assert llm.generate("between", GREEDY)[0].request_id == "0"
    assert tokens([seen[str(i)] for i in range(12)]) == tokens(llm.generate(prompts, GREEDY))


def test_threads_may_share_an_llm(llm: LLM) -> None:
    """Calls on several threads, one of them in the middle of a stream: each gets its own outputs."""
    prompts = [[f"thread {i}: {'word ' * j}{j}" for j in range(6)] for i in range(4)]
    expected = [tokens(llm.generate(each, GREEDY)) for each in prompts]
    begin = threading.Barrier(len(prompts))

    def work(mine: list[str]) -> list[list[int]]:
        begin.wait()
        for _ in range(5):
            got = tokens(llm.generate(mine, GREEDY, use_tqdm=False))
        return got

    stream = llm.stream(["half", "consumed"], [SamplingParams(temperature=0, max_tokens=1), LONG])
    next(stream)
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(work, prompts, timeout=60)) == expected
    (rest,) = stream
    assert tokens([rest]) == tokens(llm.generate("consumed", LONG))


def test_the_lock_goes_to_the_thread_that_has_waited_longest() -> None:
    lock, turns = FairLock(), []

    def work() -> None:
        with lock:
            turns.append("other")

    other = threading.Thread(target=work)
    with lock:
        assert not lock.acquire(blocking=False)
        other.start()
        while not lock._waiting:
            time.sleep(0)
    with lock:
        turns.append("mine")
    other.join()
    assert turns == ["other", "mine"]


def test_an_llm_can_neither_be_pickled_nor_copied(llm: LLM) -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied: make one in each process"):
            attempt(llm)


def test_an_error_in_the_callers_iterator_reaches_the_caller(llm: LLM) -> None:
    def prompts() -> Iterator[str]:
        yield "one"
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        llm.generate(prompts(), LONG)


def test_ctrl_c_leaves_the_llm_usable(llm: LLM) -> None:
    expected = tokens(llm.generate("Hello", GREEDY))
    outer = llm.stream(["outer one", "outer two"], [SamplingParams(max_tokens=1), LONG])
    next(outer)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate((f"prompt {i}" for i in itertools.count()), LONG)
    timer.join()
    assert llm.engine.num_unfinished() == 1  # the outer stream's
    assert next(outer).outputs[0].finish_reason == "length"
    assert list(outer) == []
    assert tokens(llm.generate("Hello", GREEDY)) == expected


def test_what_finished_before_memory_ran_out_is_yielded_first(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = SamplingParams(
        temperature=0, max_tokens=30, ignore_eos=True, stop="never there"
    )  # so it decodes each token
    params = [SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), stops]
    run, steps = Detokenizer.add, itertools.count(1)

    def add(self: Detokenizer, *args: Any, **kwargs: Any) -> bool:
        if next(steps) == 2:
            raise MemoryError
        return run(self, *args, **kwargs)

    monkeypatch.setattr(Detokenizer, "add", add)
    outputs: list[RequestOutput] = []
    with pytest.raises(MemoryError):
        outputs.extend(llm.stream(["one", "two"], params))
    assert [(output.request_id, output.error, len(output.outputs[0].token_ids)) for output in outputs] == [
        ("0", None, 2)
    ]


def test_out_of_memory_fails_the_requests_under_way_only(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = llm.stream(["outer one", "outer two"], [SamplingParams(max_tokens=1), LONG])
    next(outer)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "run", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            llm.generate("Hello", GREEDY)
    assert "failed step" in str(next(outer).error)
    assert llm.generate("Hello", GREEDY)[0].error is None


def test_an_interrupt_is_deferred_to_the_end_of_the_block() -> None:
    reached = []

    def block(interrupts: int) -> None:
        with deferred_interrupts():
            for _ in range(interrupts):
                signal.raise_signal(signal.SIGINT)
                reached.append(interrupts)

    with pytest.raises(KeyboardInterrupt):
        block(1)
    assert reached == [1]
    with pytest.raises(KeyboardInterrupt):
        block(2)
    assert reached == [1, 2]  # the second one is not held back
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_deferred_interrupt_keeps_no_variable_alive() -> None:
    tokens = array("q", [1])

    def interrupted() -> None:
        view = memoryview(tokens)  # while there is one, an array cannot grow
        signal.raise_signal(signal.SIGINT)
        assert view[0] == 1

    def block() -> None:
        with deferred_interrupts():
            interrupted()
            tokens.append(2)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert tokens.tolist() == [1, 2]


def test_importing_is_light() -> None:
    code = (
        "import sys, pybatch, pybatch.cli; pybatch.SamplingParams; pybatch.EngineArgs; "
        "assert 'torch' not in sys.modules; "
        "pybatch.LLM; pybatch.AsyncLLM; assert 'transformers' not in sys.modules; "
        "assert set(pybatch.__all__) <= set(dir(pybatch))"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


# As in vLLM's documentation of offline inference, but for the import, the model and a bound on the length.
VLLM_SCRIPT = """
from vllm import LLM, SamplingParams

prompts = [
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=8)

llm = LLM(model="smollm2-135m", gpu_memory_utilization=0.2, max_model_len=256)

outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    prompt = output.prompt
    generated_text = output.outputs[0].text
    print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")

conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": "What is the capital of France?"},
]
params = llm.get_default_sampling_params()
params.max_tokens = 12
params.temperature = 0
outputs = llm.chat(conversation, params, use_tqdm=False)
print(f"Answer: {outputs[0].outputs[0].text}")
"""


def test_a_script_for_vllm_runs_with_the_import_changed(smollm2_path: Path) -> None:
    script = VLLM_SCRIPT.replace("from vllm", "from pybatch")
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[2].startswith("Prompt: 'The capital of France is', Generated text: ")
    assert "Paris" in lines[-1]
    assert result.stderr == ""


def test_a_lower_priority_runs_first(llm: LLM) -> None:
    prompts = [f"prompt {i}" for i in range(16)]  # twice as many as run at a time
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False, priority=[5] * 8 + [-1] * 8)
    begun = [output.metrics.first_scheduled_time or 0.0 for output in outputs]
    assert max(begun[8:]) <= min(begun[:8])
    expected = llm.generate(prompts, GREEDY, use_tqdm=False, priority=3)
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]
    chats = llm.chat([[{"role": "user", "content": text}] for text in prompts[:2]], GREEDY, False, priority=[1, 0])
    assert [output.error for output in chats] == [None, None]
    with pytest.raises(ValueError, match="priority: expected one, or one for each of 2 prompts, got 3"):
        llm.generate(["a", "b"], GREEDY, priority=[1, 2, 3])
    with pytest.raises(TypeError, match="priority: expected an integer, or one for each prompt, got 'high'"):
        llm.generate("a", GREEDY, priority="high")  # type: ignore[arg-type]
    first, second = llm.generate(["a", "b"], GREEDY, use_tqdm=False, priority=[0, 0.5])  # type: ignore[list-item]
    assert (first.error, second.error) == (None, "priority: expected an integer, got 0.5")


def test_calls_wait_for_places_in_a_bounded_queue(tiny_model: Path) -> None:
    """They feed the engine as room comes, and none fails for requests of the others."""
    llm = LLM(tiny_model, num_kv_blocks=64, threads=1, max_num_seqs=2, max_queued=1)
    prompts = [f"prompt {i}" for i in range(9)]
    expected = tokens(llm.generate(prompts, GREEDY, use_tqdm=False))
    most = 0

    def counted(prompt: str) -> list[list[int]]:
        nonlocal most
        outputs = llm.generate([prompt, *prompts], GREEDY, use_tqdm=False)
        return tokens(outputs[1:])

    add = llm.engine.add_request

    def noted(*arguments: Any, **options: Any) -> None:
        nonlocal most
        add(*arguments, **options)
        most = max(most, llm.engine.num_unfinished())

    llm.engine.add_request = noted  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as threads:
        rows = threads.submit(
            pybatch.run_job, [{"prompt": each} for each in prompts], llm, temperature=0, max_tokens=12
        )
        assert list(threads.map(counted, ["a", "b"])) == [expected] * 2
        assert [row["row"] for row in rows.result()] == [*range(9)]
    assert most == 3


def test_users_are_served_in_turn(tiny_model: Path) -> None:
    one_by_one = "static(batch_size=1, by_length=False)"
    llm = LLM(tiny_model, num_kv_blocks=64, threads=1, max_num_seqs=3, policy=one_by_one)
    prompts = ["a prompt"] * 6
    for outputs in (
        llm.generate(prompts, GREEDY, use_tqdm=False, user=["many"] * 4 + ["few"] * 2),
        llm.chat(
            [[{"role": "user", "content": each}] for each in prompts],
            GREEDY,
            use_tqdm=False,
            user=["many"] * 4 + ["few"] * 2,
        ),
    ):
        begun = sorted(outputs, key=lambda output: output.metrics.first_scheduled_time or 0.0)
        assert {"4", "5"} <= {output.request_id for output in begun[:4]}
    (first, second) = llm.generate(["a", "b"], GREEDY, use_tqdm=False, ttft_target=[60.5, 0.5], tpot_target=9.0)
    assert llm.engine.metrics.targets == {("ttft", True): 2, ("tpot", True): 2}
    assert (second.metrics.first_scheduled_time or 0.0) < (first.metrics.first_scheduled_time or 0.0)
    with pytest.raises(ValueError, match="user: expected one, or one for each of 2 prompts, got 1"):
        llm.generate(["a", "b"], GREEDY, user=["ann"])
    with pytest.raises(TypeError, match="ttft_target: expected a number of seconds, or one for each prompt, got 'now'"):
        llm.generate(["a"], GREEDY, ttft_target="now")  # type: ignore[arg-type]
