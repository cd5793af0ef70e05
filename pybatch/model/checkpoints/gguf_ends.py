"""Which tokens end an answer, by a GGUF file: more than its one eos_token_id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pybatch.model.config import merge_ids
from pybatch.model.fields import Fields

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# Tokens that end generation in llama.cpp whatever a file's keys say, unless they are ordinary text. The last three
# lines belong to filling in the middle of code.
TEXTS = frozenset(
    [
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<eos>"),
        *("<end_of_utterance>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),  # noqa: RUF001
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
        "<|file_sep|>",
    ]
)
# Of these formats the message's end is not the answer's: with all of a set in the vocabulary, the token is none.
EXCEPT = (
    ("<|end|>", frozenset(["<|return|>", "<|call|>"])),
    ("<|end|>", frozenset(["<|calls|>", "<|flush|>"])),
    ("</s>", frozenset(["<|tool_response>"])),
)


def end_of_generation_ids(metadata: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The ids that the metadata's keys name, eos first, then those of the special tokens in TEXTS, as llama.cpp has it.
    Ids may be outside the vocabulary."""
    fields = Fields(metadata, where, "tokenizer.ggml.")
    named = merge_ids(*(fields.ids(f"{key}_token_id") for key in KEYS))
    tokens, types = fields.get("tokens"), fields.get("token_type")
    if not isinstance(tokens, list) or not isinstance(types, list):
        return named
    found = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (CONTROL, USER_DEFINED) and isinstance(token, str) and token in TEXTS
    }
    for token, others in EXCEPT:
        if others <= found.keys() and found.get(token) not in named:
            found.pop(token, None)
    return merge_ids(named, tuple(found.values()))
