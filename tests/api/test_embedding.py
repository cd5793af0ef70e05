"""LLM.embed and LLM.score, against transformers' hidden states and heads, on directories as sentence-transformers and
transformers save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from embedding_models import END, TEXTS, encoded, make_tokenizer, random, saved, sentence_transformers, states_of
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, normalize
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)

import pybatch
from pybatch import LLM, PoolingParams, SamplingParams
from pybatch.api.scoring import AFTER, BEFORE, INSTRUCTION
from pybatch.model import ModelError


@pytest.fixture(scope="module")
def qwen3() -> PreTrainedModel:
    return random(Qwen3ForCausalLM, Qwen3Config, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def plain(qwen3: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Without files of sentence-transformers."""
    return LLM(saved(qwen3, tmp_path_factory.mktemp("plain")), num_kv_blocks=256)


def test_the_last_tokens_state_normalised_is_the_default(qwen3: PreTrainedModel, plain: LLM) -> None:
    outputs = plain.embed(TEXTS)
    assert all(isinstance(output, pybatch.EmbeddingRequestOutput) and output.finished for output in outputs)
    assert [output.request_id for output in outputs] == ["0", "1", "2", "3"]
    for text, output in zip(TEXTS, outputs, strict=True):
        ids = encoded(text)
        assert output.prompt_token_ids == ids
        assert ids[-1] == END
        reference = normalize(states_of(qwen3, ids)[-1], dim=0)
        assert output.outputs.hidden_size == 64
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), reference, rtol=1e-4, atol=1e-5)
    (alone,) = plain.embed(TEXTS[1])
    (of_ids,) = plain.embed([encoded(TEXTS[1])])
    assert alone.outputs.embedding == of_ids.outputs.embedding == outputs[1].outputs.embedding
    short = plain.embed(TEXTS[:2], pooling_params=[PoolingParams(dimensions=8), PoolingParams(dimensions=16)])
    assert [each.outputs.hidden_size for each in short] == [8, 16]


def test_one_prompts_error_is_its_own(plain: LLM) -> None:
    long, good = plain.embed(["x" * 2000, "y"])
    assert "do not fit max_model_len" in str(long.error) or "expected at most" in str(long.error)
    assert (long.error_code, long.outputs.embedding) == ("context_length_exceeded", [])
    assert good.error is None
    (cut,) = plain.embed(["x" * 2000], truncate_prompt_tokens=-1)
    assert cut.prompt_token_ids == [*encoded("x" * 1023, add_special_tokens=False), END]


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False, "pooling_mode_cls_token": False},
        {"pooling_mode": "mean"},
    ],
)
def test_an_encoder_is_pooled_as_its_files_say(tmp_path: Path, pooling: dict[str, Any]) -> None:
    """Saved as sentence-transformers saves it: the bare model, whose tensors have no prefix."""
    model = random(Qwen3Model, Qwen3Config)
    prompts = {"query": "Find: ", "document": ""}
    files = sentence_transformers(prompts=prompts, default="query", **pooling)
    llm = LLM(saved(model, tmp_path, files), num_kv_blocks=128)
    assert "layers.0.mlp.up_proj.weight" in load_file(tmp_path / "model.safetensors")
    for name, before in ((None, "Find: "), ("query", "Find: "), ("document", "")):
        outputs = llm.embed(TEXTS, prompt_name=name)
        for text, output in zip(TEXTS, outputs, strict=True):
            reference = normalize(states_of(model, encoded(before + text)).mean(0), dim=0)
            torch.testing.assert_close(torch.tensor(output.outputs.embedding), reference, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"prompt_name: expected one of the model's prompts \('query', 'document'\)"):
        llm.embed("a", prompt_name="passage")
    with pytest.raises(ValueError, match="prompt_name: expected texts as prompts with it, got list"):
        llm.embed([[1, 2]])


def test_a_model_without_a_projection_to_the_vocabulary_refuses_to_generate(tmp_path: Path) -> None:
    files = sentence_transformers(pooling_mode="lasttoken")
    llm = LLM(saved(random(Qwen3Model, Qwen3Config), tmp_path, files), num_kv_blocks=32)
    (output,) = llm.generate("a", SamplingParams(max_tokens=1))
    assert "has no projection to the vocabulary" in str(output.error)


def test_models_that_embed_score_by_the_cosine(tmp_path: Path) -> None:
    files = sentence_transformers(pooling_mode="lasttoken")
    model = random(Qwen3ForCausalLM, Qwen3Config, tie_word_embeddings=True)
    llm = LLM(saved(model, tmp_path, files), num_kv_blocks=128)
    scores = llm.score(TEXTS[0], TEXTS[1:])
    for text, output in zip(TEXTS[1:], scores, strict=True):
        a, b = (states_of(model, encoded(each))[-1] for each in (TEXTS[0], text))
        assert output.outputs.score == pytest.approx(float(cosine_similarity(a, b, dim=0)), abs=1e-5)
        assert output.prompt_token_ids == encoded(TEXTS[0]) + encoded(text)


def test_a_reranker_scores_by_yes_and_no(qwen3: PreTrainedModel, plain: LLM) -> None:
    queries, documents = ["what?", "who?"], ["that <|im_end|>", "she"]
    yes, no = (make_tokenizer().token_to_id(word) for word in ("yes", "no"))
    outputs = plain.score(queries, documents)
    assert all(isinstance(output, pybatch.ScoringRequestOutput) for output in outputs)
    with torch.no_grad():
        for query, document, output in zip(queries, documents, outputs, strict=True):
            ids = output.prompt_token_ids
            assert plain.get_tokenizer().decode(ids, skip_special_tokens=False) == (
                f"{BEFORE}<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}{AFTER}"
            )
            assert ids.count(make_tokenizer().token_to_id("<|im_end|>")) == 2  # not that of the document
            logits = qwen3(torch.tensor([ids])).logits[0, -1]
            share = logits[[yes, no]].softmax(0)[0]
            assert output.outputs.score == pytest.approx(float(share), abs=1e-5)
    (other,) = plain.score(queries[0], documents[0], instruction="Judge")
    assert "<Instruct>: Judge\n" in plain.get_tokenizer().decode(other.prompt_token_ids)
    (cut,) = plain.score("q", "d" * 3000, truncate_prompt_tokens=-1)
    assert len(cut.prompt_token_ids) == 1024
    assert plain.get_tokenizer().decode(cut.prompt_token_ids, skip_special_tokens=False).endswith("ddd" + AFTER)


def test_a_chat_template_may_say_what_the_reranker_reads(plain: LLM) -> None:
    template = "{% for each in messages %}[{{ each.role }}]{{ each.content }}{% endfor %}"
    (output,) = plain.score("q", "d", chat_template=template, instruction="i")
    assert plain.get_tokenizer().decode(output.prompt_token_ids) == "[system]i[query]q[document]d"


@pytest.mark.parametrize(
    ("kind", "config"),
    [(Qwen3ForSequenceClassification, Qwen3Config), (LlamaForSequenceClassification, LlamaConfig)],
    ids=["qwen3", "llama"],
)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_head_of_one_label_scores_by_its_sigmoid(
    tmp_path: Path, kind: type[PreTrainedModel], config: Any, quantization: str | None
) -> None:
    model = random(kind, config, num_labels=1)
    llm = LLM(saved(model, tmp_path), num_kv_blocks=128, quantization=quantization)
    outputs = llm.score(["a query", "b"], ["a document", TEXTS[3]])
    for query, document, output in zip(["a query", "b"], ["a document", TEXTS[3]], outputs, strict=True):
        ids = encoded(query, pair=document)
        assert output.prompt_token_ids == ids
        with torch.no_grad():
            logit = model.score(states_of(model, ids)[-1])
        assert output.outputs.score == pytest.approx(float(logit.sigmoid()), abs=1e-5 if quantization is None else 0.05)


def test_what_cannot_be_scored_is_said(tmp_path: Path, plain: LLM) -> None:
    model = random(Qwen3ForSequenceClassification, Qwen3Config, num_labels=3)
    (output,) = LLM(saved(model, tmp_path), num_kv_blocks=32).score("a", "b")
    assert "sorts texts into 3 labels; expected one to score by" in str(output.error)
    with pytest.raises(ValueError, match="data_1: expected one text, or one for each of 3 documents"):
        plain.score(["a", "b"], ["c", "d", "e"])
    with pytest.raises(TypeError, match="data_2: expected a text or a list of texts"):
        plain.score("a", [1, 2])


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Dense", "path": ""}],
            "json: Dense is not known",
        ),
        ("modules.json", {}, "modules.json: expected a JSON list, got dict"),
        *(
            ("modules.json", [{"type": "models.Pooling", "path": path}], "path: expected a folder of the model, got")
            for path in ("../other", "/etc", 3)
        ),
        ("modules.json", [3], "modules.json: expected objects with a type, got 3"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "median"},
            "pooling_mode: .* one of cls, max, .*, got 'median'",
        ),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt: expected true"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name: expected one of"),
    ],
)
def test_files_that_say_something_else_are_refused(tmp_path: Path, file: str, content: Any, said: str) -> None:
    files = {**sentence_transformers(pooling_mode="mean"), file: content}
    with pytest.raises(ModelError, match=said):
        LLM(saved(random(Qwen3ForCausalLM, Qwen3Config), tmp_path, files), num_kv_blocks=32)


def test_a_reranker_that_names_its_tokens_is_asked_through_its_template(qwen3: PreTrainedModel, tmp_path: Path) -> None:
    of = "sentence_transformers."
    files = {
        "modules.json": [
            {"idx": 0, "path": "", "type": f"{of}base.modules.transformer.Transformer"},
            {"idx": 1, "path": "1_LogitScore", "type": f"{of}cross_encoder.modules.logit_score.LogitScore"},
        ],
        "1_LogitScore/config.json": {"true_token_id": 70, "false_token_id": 71},
    }
    saved(qwen3, tmp_path, files)
    template = "{% for each in messages %}{{ each.role }}: {{ each.content }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    (output,) = LLM(tmp_path, num_kv_blocks=64).score("q", "d")
    ids = encoded("query: q\ndocument: d\n", add_special_tokens=False)
    assert output.prompt_token_ids == ids
    with torch.no_grad():
        logits = qwen3(torch.tensor([ids])).logits[0, -1]
    assert output.outputs.score == pytest.approx(float(logits[[70, 71]].softmax(0)[0]), abs=1e-5)


def test_a_head_that_is_not_there_is_missed(tmp_path: Path) -> None:
    saved(random(Qwen3ForSequenceClassification, Qwen3Config, num_labels=1), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no tensor 'score\.weight'"):
        LLM(tmp_path, num_kv_blocks=32)


def test_sampling_params_are_refused_by_name(plain: LLM) -> None:
    wrong: Any = SamplingParams(max_tokens=3)
    message = "pooling_params: expected PoolingParams, or one for each prompt, got "
    for params in (wrong, [wrong, wrong], "mean", 3, {"dimensions": 8}):
        with pytest.raises(TypeError, match=message):
            plain.embed(TEXTS[:2], pooling_params=params)
    with pytest.raises(TypeError, match=message):
        plain.score(TEXTS[0], TEXTS[1], pooling_params=wrong)
