"""A model that always says the same: a chain of tokens, each of which has the next one as its likeliest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tiny_model import HIDDEN, save_tiny_model

GO = "<|go|>"  # what its template ends with


def save_chain_model(directory: Path, template: str, said: Sequence[str], special: Sequence[str] = ()) -> Path:
    """Writes a model that answers with the texts `said`, no two of them equal, and ends. special: those of them that
    are special tokens."""
    directory.mkdir()
    save_tiny_model(directory)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_special_tokens([GO, *special])
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in said if text not in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    size = tokenizer.get_vocab_size(with_added_tokens=True)

    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if "o_proj" in name or "down_proj" in name:  # what the layers add
            tensors[name] = torch.zeros_like(tensor)
    embedding = torch.randn(size, HIDDEN, generator=torch.Generator().manual_seed(1))
    head = torch.zeros(size, HIDDEN)
    chain = [tokenizer.token_to_id(text) for text in (GO, *said, "<|end|>")]
    for before, after in pairwise(chain):
        head[after] = embedding[before]
    save_file(
        tensors | {"model.embed_tokens.weight": embedding, "lm_head.weight": head}, directory / "model.safetensors"
    )

    config = json.loads((directory / "config.json").read_text())
    config |= {"vocab_size": size, "tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
    return directory
