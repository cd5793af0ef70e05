"""A model small enough to run in milliseconds: two random layers over bytes, with a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

SPECIAL = ("<|end|>", "<|role|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|role|>{{ message.role }}: {{ message.content }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|role|>assistant: {% endif %}"
)
HIDDEN, MLP, HEADS, LAYERS, CONTEXT = 64, 96, 4, 2, 512


def save_tiny_model(directory: Path) -> Path:
    """Writes it as a Hugging Face directory."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate((*SPECIAL, *alphabet))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(directory / "tokenizer.json"))

    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(vocab),
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE}))

    random = torch.Generator().manual_seed(0)
    tensors = {"model.embed_tokens.weight": torch.randn(len(vocab), HIDDEN, generator=random)}
    for i in range(LAYERS):
        for name, shape in (
            *((f"self_attn.{x}_proj", (HIDDEN, HIDDEN)) for x in "qkvo"),
            ("mlp.gate_proj", (MLP, HIDDEN)),
            ("mlp.up_proj", (MLP, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, MLP)),
        ):
            tensors[f"model.layers.{i}.{name}.weight"] = torch.randn(shape, generator=random) * 0.2
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = torch.ones(HIDDEN)
    tensors["model.norm.weight"] = torch.ones(HIDDEN)
    save_file(tensors, directory / "model.safetensors")
    return directory
