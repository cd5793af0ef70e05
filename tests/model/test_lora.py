"""LoRA adapters that the rows of a batch choose, beside the weights: in every family against transformers with weights
merged by torch, and bit against bit."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model.checkpoints.test_adapter import change, pair, save_adapter
from model.families import make, reference_logits, save, some_ids
from model.paged import BLOCK, caches_for
from torch import Tensor, nn
from transformers import PreTrainedModel

from pybatch.model import ForwardBatch, ModelError, load_model
from pybatch.model.checkpoints.adapter import Adapter
from pybatch.model.loader import LoadedModel

PROMPTS = [some_ids(length) for length in (5, 23, 1, 40)]
# What requests cannot choose: experts and what routes to them, inputs of all layers, and what latents become.
MERGED_ONLY = (
    ".experts.", ".router", "mlp.gate.", "shared_expert_gate", "shared_expert.down_proj", "per_layer_model",
    "kv_b_proj",
)  # fmt: skip


def changeable(model: PreTrainedModel) -> list[str]:
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linears if not any(part in f"{name}." for part in MERGED_ONLY)]


def make_adapters(model: PreTrainedModel, folder: Path, count: int) -> list[tuple[Path, PreTrainedModel]]:
    """Each with the model that it makes. The second changes every other module, with another rank."""
    made = []
    for i in range(count):
        modules = changeable(model)[:: 1 + i % 2]
        changes = {module: pair(model, module, rank=4 + 3 * i) for module in modules}
        path = save_adapter(folder / f"adapter-{i}", changes, lora_alpha=2 * (i + 1), r=4 + 3 * i)
        merged = copy.deepcopy(model)
        if (config := merged.config).tie_word_embeddings:  # the head's changes are not the embedding's
            config.tie_word_embeddings = False
            head = merged.get_output_embeddings()
            head.weight = nn.Parameter(head.weight.detach().clone())
        for module, roles in changes.items():
            change(merged, module, 2 * (i + 1) / (4 + 3 * i) * roles["B"] @ roles["A"])
        made.append((path, merged))
    return made


def load(path: Path, adapters: Sequence[Path], **more: Any) -> LoadedModel:
    loaded = load_model(path, skip_tokenizer=True, max_loras=3, **more)
    assert loaded.adapters is not None
    for slot, each in enumerate(adapters):
        adapter = Adapter(each)
        if more.get("stages") is None:  # else each has some of its modules
            loaded.adapters.check(adapter)
        loaded.adapters.load(slot, adapter)
    return loaded


def run(loaded: LoadedModel, prompts: Sequence[list[int]], slots: Sequence[int]) -> list[Tensor]:
    """The logits of each prompt's tokens, all in one step; a slot below 0: without adapter, and if all are with none
    told of."""
    decoder, lengths = loaded.decoder, torch.tensor([len(prompt) for prompt in prompts])
    blocks = -(-lengths // BLOCK)
    tables = torch.zeros(len(prompts), int(blocks.max()), dtype=torch.int32)
    for i, count in enumerate(blocks.tolist()):
        tables[i, :count] = torch.arange(int(blocks[:i].sum()), int(blocks[:i].sum()) + count)
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    owner = torch.arange(len(prompts)).repeat_interleave(lengths)
    of_rows = torch.tensor(slots, dtype=torch.int32)[owner]
    chosen = of_rows if max(slots) >= 0 else None
    states = torch.arange(len(prompts), dtype=torch.int32)
    batch = ForwardBatch(
        token_ids=torch.tensor([token for prompt in prompts for token in prompt]),
        positions=positions,
        slots=tables[owner, positions // BLOCK].long() * BLOCK + positions % BLOCK,
        block_tables=tables,
        query_start=torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        seq_lens=lengths.int(),
        logits_rows=torch.arange(len(positions)),
        state_source=torch.full_like(states, -1),
        state_destination=states % 2,
        adapters=chosen,
        last_adapters=chosen,
    )
    caches = caches_for(decoder, int(blocks.sum()))
    logits = decoder.forward(batch, caches).clone()
    return list(logits.split(lengths.tolist())) if len(logits) else []  # of a stage that is not the last


# Whose projections are joined, taken apart, filled up or turned each in another way.
FAMILIES = [
    "llama3", "llama-heads-of-20", "llama-biases", "smollm2", "qwen3", "qwen3_5", "qwen3_next", "phi3", "glm",
    "gpt_neox", "cohere-own-norms", "gptj", "falcon-grouped", "starcoder2", "nemotron", "granite", "gemma2", "gemma4",
    "gemma4-keys-as-values", "gemma4-moe", "mixtral", "qwen2-moe", "gpt_oss", "deepseek-v2", "deepseek-v3",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_get_what_their_adapters_merged_would_give_them(tmp_path: Path, name: str) -> None:
    model = make(name)
    path = save(model, tmp_path / "model")
    adapters = make_adapters(model, tmp_path, 2)
    loaded = load(path, [each for each, _ in adapters])
    slots, models = [0, -1, 1, 0], [adapters[0][1], model, adapters[1][1], adapters[0][1]]
    has_states = "qwen3_5" in name or "qwen3_next" in name  # whose caches here are of two sequences
    chosen = [0, 2] if has_states else range(4)
    found = run(loaded, [PROMPTS[i] for i in chosen], [slots[i] for i in chosen])
    for i, logits in zip(chosen, found, strict=True):
        torch.testing.assert_close(logits, reference_logits(models[i], PROMPTS[i]), rtol=3e-4, atol=3e-4)


FORMS: list[dict[str, Any]] = [
    {}, {"dtype": "bfloat16"}, {"quantization": "int8"}, {"quantization": "int8-weight-only"},
    {"quantization": "int8", "dtype": "bfloat16"},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["llama3", "gemma2", "starcoder2", "phi3"])
def test_a_row_has_its_bits_beside_any_adapters(tmp_path: Path, name: str, form: dict[str, Any]) -> None:
    model = make(name)
    path = save(model, tmp_path / "model")
    loaded = load(path, [each for each, _ in make_adapters(model, tmp_path, 2)], **form)
    plain = load_model(path, skip_tokenizer=True, **form)
    mixed = run(loaded, PROMPTS, [0, -1, 1, 0])
    for i, slot in enumerate([0, -1, 1, 0]):
        assert torch.equal(run(loaded, [PROMPTS[i]], [slot])[0], mixed[i])
    assert torch.equal(mixed[1], run(plain, [PROMPTS[1]], [-1])[0])
    assert not torch.equal(mixed[0], run(plain, [PROMPTS[0]], [-1])[0])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, LoadedModel]:
    model = make("llama3")
    path = save(model, tmp_path_factory.mktemp("lora") / "model")
    return model, load_model(path, skip_tokenizer=True, max_loras=2, max_lora_rank=8)


Q = "model.layers.0.self_attn.q_proj"


def test_a_slot_forgets_what_it_had(llama: tuple[PreTrainedModel, LoadedModel], tmp_path: Path) -> None:
    model, loaded = llama
    assert loaded.adapters is not None
    first = Adapter(save_adapter(tmp_path / "first", {each: pair(model, each, 8) for each in changeable(model)}))
    second = Adapter(save_adapter(tmp_path / "second", {Q: pair(model, Q, 2)}))
    loaded.adapters.load(1, second)
    wanted = run(loaded, PROMPTS[:1], [1])[0]
    loaded.adapters.load(0, first)
    assert not torch.equal(run(loaded, PROMPTS[:1], [0])[0], wanted)
    loaded.adapters.load(0, second)
    assert torch.equal(run(loaded, PROMPTS[:1], [0])[0], wanted)


@pytest.mark.parametrize(
    ("module", "roles", "config", "said"),
    [
        (Q, {"A": torch.ones(9, 64), "B": torch.ones(64, 9)}, {}, "rank of at most max_lora_rank = 8, got 9"),
        (Q, {"A": torch.ones(4, 60), "B": torch.ones(64, 4)}, {}, r"of \[64, 60\], and model has one of"),
        (Q, {"A": torch.ones(4, 64), "B": torch.ones(64, 4), "magnitude_vector": torch.ones(64)}, {"use_dora": True},
         "use_dora is known only where the adapter is merged"),
        ("model.embed_tokens", {"embedding_A": torch.ones(4, 211), "embedding_B": torch.ones(64, 4)}, {},
         "changes model.embed_tokens, which requests cannot choose in model"),
        ("model.layers.9.mlp.up_proj", {"A": torch.ones(4, 64), "B": torch.ones(64, 4)}, {},
         "changes model.layers.9.mlp.up_proj, which requests cannot choose in model"),
    ],
)  # fmt: skip
def test_what_requests_cannot_choose_is_refused_by_name(
    llama: tuple[PreTrainedModel, LoadedModel],
    tmp_path: Path,
    module: str,
    roles: dict[str, Tensor],
    config: dict[str, Any],
    said: str,
) -> None:
    _, loaded = llama
    assert loaded.adapters is not None
    adapter = Adapter(save_adapter(tmp_path / "adapter", {module: roles}, **config))
    with pytest.raises(ModelError, match=said):
        loaded.adapters.check(adapter)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    model = make("mixtral")
    loaded = load(save(model, tmp_path / "model"), [])
    assert loaded.adapters is not None
    module = "model.layers.0.block_sparse_moe.experts.1.w1"
    adapter = save_adapter(tmp_path / "adapter", {module: {"A": torch.ones(4, 64), "B": torch.ones(48, 4)}})
    with pytest.raises(ModelError, match=r"changes model.*experts.1.w1, which requests cannot choose in model"):
        loaded.adapters.check(Adapter(adapter))
