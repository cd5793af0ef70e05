"""Small random models that embed and score, saved as transformers and sentence-transformers save them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel

TEXTS = ["a", "the cat sat on the mat", "naïve façade 日本語", "x" * 200]
END = 0
SMALL = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": END,
    "head_dim": 16,
}


def make_tokenizer() -> Tokenizer:
    """Bytes, with a token for yes and no, and the end of sequence behind a text, as Qwen3-Embedding has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate(("<end>", *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["yes", "no"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", pair="$A $B <end>", special_tokens=[("<end>", END)]
    )
    return tokenizer


def saved(model: PreTrainedModel, directory: Path, files: dict[str, Any] | None = None) -> Path:
    model.eval().save_pretrained(directory)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    for name, content in (files or {}).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content))
    return directory


def sentence_transformers(*, prompts: dict[str, str] | None = None, default: str | None = None, **pooling: Any) -> Any:
    """Its files, with a Normalize module."""
    of = "sentence_transformers.models."
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{of}Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{of}Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{of}Normalize"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 64, "include_prompt": True, **pooling},
        "config_sentence_transformers.json": {"prompts": prompts or {}, "default_prompt_name": default},
    }


def random(kind: type[PreTrainedModel], config: Any, **more: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config(**{**SMALL, **more}))


def states_of(model: PreTrainedModel, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        states: torch.Tensor = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    return states


def encoded(text: str, *, pair: str | None = None, add_special_tokens: bool = True) -> list[int]:
    ids: list[int] = make_tokenizer().encode(text, pair, add_special_tokens=add_special_tokens).ids
    return ids
