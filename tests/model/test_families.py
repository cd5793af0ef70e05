"""Every family gives the logits of transformers in fp32, and in batches its greedy tokens."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from engine.runs import run
from model.families import CONFIGS, EXPERTS, LATENT, make, reference_batch, reference_logits, save, some_ids
from model.paged import logits_of
from transformers import DeepseekV3Config, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.model import LoadedModel, load_model
from pybatch.model.config import AttentionConfig, LatentAttentionConfig


@pytest.fixture(scope="module", params=CONFIGS)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, LoadedModel]:
    model = make(request.param)
    directory = save(model, tmp_path_factory.mktemp(request.param))
    return model, load_model(directory, skip_tokenizer=True)


@pytest.mark.parametrize("length", [1, 2, 17, 64, 300])
def test_logits_equal_those_of_transformers(family: tuple[PreTrainedModel, LoadedModel], length: int) -> None:
    model, loaded = family
    ids = some_ids(length)
    expected, actual = reference_logits(model, ids), logits_of(loaded.decoder, ids)
    torch.testing.assert_close(actual, expected, rtol=2e-4, atol=2e-4)
    top = expected.topk(2).values
    clear = top[:, 0] - top[:, 1] > 1e-3
    assert clear.any()
    assert torch.equal(actual.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_greedy_tokens_of_a_batch_are_those_of_transformers(
    family: tuple[PreTrainedModel, LoadedModel], batch: int
) -> None:
    """Of 1 to 300 tokens, and of many prompts to 100, which take several steps too. A first difference counts unless
    transformers' own top two are within 1e-3."""
    model, loaded = family
    longest = 300 if batch < 32 else 100
    prompts = [some_ids(1 + (longest - 1) * i // max(batch - 1, 1)) for i in range(batch)]
    engine = Engine(loaded.decoder, None, EngineConfig(num_kv_blocks=1024))
    outputs = run(engine, prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
    answers = [output.outputs[0].token_ids for output in outputs]
    references = reference_batch(model, [prompt + tokens for prompt, tokens in zip(prompts, answers, strict=True)])
    for prompt, tokens, logits in zip(prompts, answers, references, strict=True):
        assert len(tokens) == 8
        top = logits[len(prompt) - 1 : -1].topk(2)
        for token, best, (first, second) in zip(tokens, top.indices[:, 0], top.values, strict=True):
            if token != best:
                assert first - second < 1e-3, f"prompt of {len(prompt)}: {token} where transformers says {best}"
                break


def test_chunked_prefill_and_decode_change_no_bit(family: tuple[PreTrainedModel, LoadedModel]) -> None:
    decoder = family[1].decoder
    ids = some_ids(70)
    whole = logits_of(decoder, ids)
    assert torch.equal(logits_of(decoder, ids, [16, 1, 30, 1, 1, 21]), whole)
    assert torch.equal(logits_of(decoder, ids, [1] * 70), whole)


def test_only_the_wanted_rows_get_logits(family: tuple[PreTrainedModel, LoadedModel]) -> None:
    from model.paged import BLOCK, caches_for

    from pybatch.model import ForwardBatch

    decoder, ids = family[1].decoder, some_ids(20)
    batch = ForwardBatch(
        token_ids=torch.tensor(ids),
        positions=torch.arange(20),
        slots=torch.arange(20),
        block_tables=torch.tensor([[0, 1]], dtype=torch.int32),
        query_start=torch.tensor([0, 20], dtype=torch.int32),
        seq_lens=torch.tensor([20], dtype=torch.int32),
        logits_rows=torch.tensor([19, 3]),
        state_source=torch.tensor([-1], dtype=torch.int32),
        state_destination=torch.tensor([0], dtype=torch.int32),
    )
    assert BLOCK == 16
    actual = decoder.forward(batch, caches_for(decoder, 2)).clone()
    assert torch.equal(actual, logits_of(decoder, ids)[[19, 3]])


def test_config_says_what_the_model_is(family: tuple[PreTrainedModel, LoadedModel]) -> None:
    model, loaded = family
    theirs, ours = model.config, loaded.config
    llama_there = {"internlm3": "InternLM3ForCausalLM"}  # which transformers runs as a Llama
    assert ours.architecture == llama_there.get(theirs.model_type, type(model).__name__)
    assert (ours.vocab_size, ours.num_layers) == (theirs.vocab_size, theirs.num_hidden_layers)
    assert (ours.bos_token_id, ours.eos_token_ids) == (1, (2,))
    weights = sum(parameter.numel() for parameter in model.parameters())
    padding = 2 * 16 * 4 * theirs.hidden_size * (3 * theirs.num_hidden_layers + 2)  # of the last panel of each matrix
    for mixer in (layer.mixer for layer in ours.layers):
        if isinstance(mixer, AttentionConfig):  # zeros that fill up its heads
            filled = (mixer.num_heads + mixer.num_kv_heads) * (mixer.head_dim - mixer.own_head_dim)
            padding += 2 * 4 * theirs.hidden_size * filled
        if isinstance(mixer, LatentAttentionConfig):  # whose heads have matrices each
            padding += 16 * 4 * mixer.num_heads * (mixer.key_dim + mixer.latent)
    assert weights * 4 <= loaded.decoder.weight_bytes() <= weights * 4 + padding


def test_shards_load_as_one_file_does(tmp_path: Path) -> None:
    model = make("qwen3")
    whole = load_model(save(model, tmp_path / "whole"), skip_tokenizer=True)
    sharded = save(model, tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    ids = some_ids(9)
    assert torch.equal(logits_of(load_model(sharded, skip_tokenizer=True).decoder, ids), logits_of(whole.decoder, ids))


def test_contexts_longer_than_the_original_have_the_long_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all their positions, as transformers has it where the prompt alone is longer."""
    config = copy.deepcopy(CONFIGS["phi3-longrope"])
    config.original_max_position_embeddings = config.rope_parameters["original_max_position_embeddings"] = 64
    monkeypatch.setitem(CONFIGS, "phi3-longrope", config)
    model = make("phi3-longrope")
    directory = save(model, tmp_path)
    short, long = (load_model(directory, skip_tokenizer=True, max_model_len=n).decoder for n in (None, 65))
    assert short.context_length == 64
    for decoder, length in ((short, 64), (long, 65)):
        ids = some_ids(length)
        torch.testing.assert_close(logits_of(decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)
    assert not torch.allclose(logits_of(short, some_ids(64)), logits_of(long, some_ids(64)), rtol=1e-2, atol=1e-2)


def test_kimi_k2_is_a_deepseek_v3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keys that moonshotai/Kimi-K2-Instruct's config.json has, in the form of transformers 4."""
    kimi = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.827}
    rope = {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    config = DeepseekV3Config(
        **LATENT, **EXPERTS, **kimi, n_routed_experts=12, n_shared_experts=1, norm_topk_prob=True,
        num_key_value_heads=5, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "yarn", "rope_theta": 50000.0, "original_max_position_embeddings": 64, **rope},
    )  # fmt: skip
    monkeypatch.setitem(CONFIGS, "kimi", config)
    model = make("kimi")
    directory = save(model, tmp_path)
    fields = json.loads((directory / "config.json").read_text())
    del fields["rope_parameters"]
    fields |= {
        "model_type": "kimi_k2",
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "rope_theta": 50000.0,
        "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 64, **rope},
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "ep_size": 1,
        "seq_aux": True,
        "aux_loss_alpha": 0.001,
        "num_nextn_predict_layers": 0,
    }
    (directory / "config.json").write_text(json.dumps(fields))
    loaded = load_model(directory, skip_tokenizer=True)
    assert loaded.config.family == "deepseek_v3"
    for ids in (some_ids(1), some_ids(200)):
        torch.testing.assert_close(logits_of(loaded.decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)


def test_the_language_model_of_one_that_sees_is_read(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=copy.deepcopy(CONFIGS["gemma3"]).to_dict(),
        vision_config={**vision, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    loaded = load_model(save(model, tmp_path), skip_tokenizer=True)
    ids = some_ids(60)
    torch.testing.assert_close(logits_of(loaded.decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)
