"""LoRA adapters that requests name, mixed in a batch: against peft's own outputs, and bit against bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model.checkpoints.test_adapter import pair, save_adapter
from model.families import make, save, some_ids
from torch import nn
from transformers import PreTrainedModel

from pybatch import LLM, LoRARequest, RequestOutput, SamplingParams

peft = pytest.importorskip("peft")

GREEDY = SamplingParams(temperature=0, max_tokens=10, logprobs=1, ignore_eos=True)
PROMPTS = [some_ids(10 + 7 * i) for i in range(8)]


class Adapted:
    """A model with adapters that peft has made; the first is None: the model itself."""

    def __init__(self, model: PreTrainedModel, folder: Path, count: int) -> None:
        self.path = save(model, folder / "model")
        self.requests: list[LoRARequest | None] = [None]
        torch.manual_seed(0)
        for i in range(count):
            name = f"adapter-{i}"
            config = peft.LoraConfig(
                r=(4, 8, 16)[i % 3],
                lora_alpha=9 * (i + 1),
                target_modules=["q_proj", "v_proj"] if i % 2 else "all-linear",
                use_rslora=i % 2 == 1,
                alpha_pattern={r"layers\.1\..*q_proj": 3},
                task_type="CAUSAL_LM",
                init_lora_weights=False,
            )
            if i:
                self.model.add_adapter(name, config)
            else:
                self.model = peft.get_peft_model(model, config, adapter_name=name)
            for place, weight in self.model.named_parameters():
                if f".{name}." in place:
                    nn.init.normal_(weight, std=0.1)
            self.model.save_pretrained(folder, selected_adapters=[name])
            self.requests.append(LoRARequest(name, i + 1, str(folder / name)))

    def tokens(self, prompt: list[int], request: LoRARequest | None) -> tuple[list[int], list[float]]:
        """Greedy ones and their log-probabilities."""
        if request is None:
            with self.model.disable_adapter():
                return self._tokens(prompt)
        self.model.set_adapter(request.lora_name)
        return self._tokens(prompt)

    def _tokens(self, prompt: list[int]) -> tuple[list[int], list[float]]:
        ids, logprobs = list(prompt), []
        for _ in range(10):
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(0)
            ids.append(int(logits.argmax()))
            logprobs.append(float(logits.max()))
        return ids[len(prompt) :], logprobs


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    return Adapted(make("llama3"), tmp_path_factory.mktemp("adapted"), 4)


def llm_of(adapted: Adapted, **more: Any) -> LLM:
    return LLM(adapted.path, skip_tokenizer_init=True, **{"enable_lora": True, "max_loras": 4, **more})


def bits(output: RequestOutput) -> tuple[Sequence[int], float | None]:
    assert output.error is None
    return output.outputs[0].token_ids, output.outputs[0].cumulative_logprob


def test_tokens_and_log_probabilities_are_those_of_peft(adapted: Adapted) -> None:
    chosen = [adapted.requests[i % 5] for i in range(8)]
    outputs = llm_of(adapted, max_num_batched_tokens=32).generate(PROMPTS, GREEDY, lora_request=chosen)
    for prompt, request, output in zip(PROMPTS, chosen, outputs, strict=True):
        tokens, logprobs = adapted.tokens(prompt, request)
        assert list(output.outputs[0].token_ids) == tokens
        assert output.outputs[0].logprobs is not None
        found = [each[token].logprob for each, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
        assert found == pytest.approx(logprobs, abs=2e-4)


FORMS: list[dict[str, Any]] = [
    {}, {"quantization": "int8"}, {"quantization": "int8-weight-only"}, {"dtype": "bfloat16"},
    {"num_kv_blocks": 14, "block_size": 8, "max_num_batched_tokens": 16},
    {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}, {"max_loras": 1},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_request_has_its_bits_beside_any_adapters(adapted: Adapted, form: dict[str, Any]) -> None:
    """Without one those of an engine that takes none: over every precision, with preemption, drafts, one place."""
    llm, alone = llm_of(adapted, **form), llm_of(adapted, enable_prefix_caching=False, **form)
    plain = LLM(adapted.path, skip_tokenizer_init=True, **{k: v for k, v in form.items() if k != "max_loras"})
    chosen = [adapted.requests[i % 5] for i in range(8)]
    mixed = llm.generate(PROMPTS, GREEDY, lora_request=chosen)
    for prompt, request, output in zip(PROMPTS, chosen, mixed, strict=True):
        assert bits(alone.generate(prompt, GREEDY, lora_request=request)[0]) == bits(output)
        if request is None:
            assert bits(plain.generate(prompt, GREEDY)[0]) == bits(output)
    assert (
        len({tuple(bits(each)[0]) for each in llm.generate([PROMPTS[2]] * 5, GREEDY, lora_request=adapted.requests)})
        == 5
    )
    llm.engine.check_integrity()


def test_prefixes_are_shared_by_requests_of_one_adapter_alone(adapted: Adapted) -> None:
    llm, (_, first, second, *_) = llm_of(adapted), adapted.requests
    prompt = PROMPTS[-1] * 2
    told = [llm.generate(prompt, GREEDY, lora_request=each)[0] for each in (None, first, second, None, first, second)]
    assert [each.num_cached_tokens for each in told] == [0, 0, 0, *[len(prompt) - 1] * 3]
    assert [bits(each) for each in told[:3]] == [bits(each) for each in told[3:]]


def test_prefixes_on_disk_are_of_the_dtype_in_which_an_adapter_is_kept(adapted: Adapted, tmp_path: Path) -> None:
    request, prompt = adapted.requests[1], PROMPTS[-1] * 2
    for dtype in ("bfloat16", "float32"):
        wanted = llm_of(adapted, lora_dtype=dtype).generate(prompt, GREEDY, lora_request=request)
        for from_disk in (0, len(prompt) // 16 * 16):
            llm = llm_of(adapted, lora_dtype=dtype, prefix_cache_dir=tmp_path)
            found = llm.generate([prompt] * 2, GREEDY, lora_request=[request] * 2)
            assert [bits(each) for each in found] == [bits(wanted[0])] * 2
            assert llm.engine.metrics.disk_tokens == from_disk
            llm.engine.prefix_files.wait()  # type: ignore[union-attr]


def test_samples_and_beams_of_an_adapter(adapted: Adapted) -> None:
    llm, request = llm_of(adapted), adapted.requests[1]
    several = SamplingParams(n=3, temperature=1, seed=5, max_tokens=6, logprobs=0, ignore_eos=True)
    beams = SamplingParams(n=2, use_beam_search=True, max_tokens=6, logprobs=0)
    for params in (several, beams):
        (alone,) = llm.generate(PROMPTS[1], params, lora_request=request)
        *_, mixed = llm.generate(
            [PROMPTS[0], PROMPTS[2], PROMPTS[1]], params, lora_request=[*adapted.requests[2:4], request]
        )
        wanted = [(each.token_ids, each.cumulative_logprob) for each in alone.outputs]
        assert [(each.token_ids, each.cumulative_logprob) for each in mixed.outputs] == wanted


def test_more_adapters_than_places_wait_their_turn(adapted: Adapted) -> None:
    llm = llm_of(adapted, max_loras=2)
    engine, chosen = llm.engine, [adapted.requests[1 + i % 4] for i in range(8)]
    for i, (prompt, request) in enumerate(zip(PROMPTS, chosen, strict=True)):
        params = SamplingParams(temperature=0, max_tokens=4, lora_request=request, ignore_eos=True)
        engine.add_request(str(i), prompt, params)
    assert len(engine.adapters) == 4
    engine.abort("2")
    assert len(engine.adapters) == 3
    done = []
    while engine.has_unfinished():
        done += [output.request_id for output in engine.step()]
    assert set(done) == {"0", "1", "3", "4", "5", "6", "7"}
    assert done.index("0") < done.index("3")
    engine.check_integrity()


@pytest.mark.parametrize(
    ("sizes", "form"), [((2, 1), {"quantization": "int8", "dtype": "bfloat16"}), ((1, 2), {})], ids=str
)
def test_processes_give_the_bits_of_one(
    adapted: Adapted, sizes: tuple[int, int], form: dict[str, Any], tmp_path: Path
) -> None:
    """Places for two adapters of four, so that others are loaded in their stead."""
    form = {**form, "max_loras": 2, "num_kv_blocks": 100, "threads": 1}
    several = llm_of(adapted, **form, tensor_parallel_size=sizes[0], pipeline_parallel_size=sizes[1])
    requests = [adapted.requests[i % 5] for i in range(len(PROMPTS))]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    found = [
        list(map(bits, llm.generate(prompts, GREEDY, lora_request=requests)))  # type: ignore[arg-type]
        for llm in (llm_of(adapted, **form), several)
    ]
    assert found[0] == found[1]
    model = make("llama3")
    for module, rank, why in (("lm_head", 17, "expected a rank of at"), ("model.embed_tokens", 4, "cannot choose")):
        path = save_adapter(tmp_path / module, {module: pair(model, module, rank=rank)}, r=rank)
        with pytest.raises(ValueError, match=f"lora_request: {module}: .*{why}"):
            several.generate(prompts[:1], GREEDY, lora_request=LoRARequest(module, 9, str(path)))  # type: ignore[arg-type]


def test_what_cannot_be_had_is_refused_by_name(adapted: Adapted, tmp_path: Path) -> None:
    llm, plain = llm_of(adapted, max_lora_rank=4), LLM(adapted.path, skip_tokenizer_init=True)
    first, second = adapted.requests[1:3]
    assert first is not None
    assert second is not None
    for request, said in [
        (
            LoRARequest("gone", 7, str(tmp_path)),
            "lora_request: gone: adapter: expected a directory with adapter_config",
        ),
        (second, "lora_request: adapter-1: .*expected a rank of at most max_lora_rank = 4, got 8"),
        (LoRARequest("other", 1, second.lora_path), "lora_request: lora_int_id 1 is 'adapter-0' from"),
        ([first], "lora_request: expected one, or one for each of 2 prompts, got 1"),
    ]:
        llm.generate(PROMPTS[:1], GREEDY, lora_request=first)
        with pytest.raises(ValueError, match=said):
            llm.generate(PROMPTS[:2], GREEDY, lora_request=request)
    with pytest.raises(ValueError, match="lora_request: expected none, since enable_lora is off"):
        plain.generate(PROMPTS, GREEDY, lora_request=first)
