"""Small tokenizers of every kind of decoder that models come with."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from pybatch.model import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACES = decoders.Replace("▁", " ")
WORDS = ["▁", "▁▁", "▁a", "b", "▁🙂", "a", "é", "日", "�", "##ing", ".", "n't", "##s", "ab</w>", "c</w>"]


def kind(decoder: object, vocabulary: list[str]) -> Tokenizer:
    """With two special tokens and two that are added but not special."""
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, [], byte_fallback=True))
    backend.decoder = decoder
    backend.add_special_tokens(["<s>", "<|end|>"])
    backend.add_tokens(["<think>", "▁x y"])
    return Tokenizer(backend)


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
KINDS = {
    "byte-level": kind(decoders.ByteLevel(), [*LETTERS, "Ġthe", "âĤ", "¬x", "ðŁĻĤ"]),
    "sentencepiece": kind(
        decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        [*BYTES, *WORDS],
    ),
    "sentencepiece without a prefix": kind(
        decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse()]), [*BYTES, *WORDS]
    ),
    "metaspace": kind(decoders.Metaspace(), WORDS),
    "metaspace and bytes": kind(decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]), [*BYTES, *WORDS]),
    "wordpiece with cleanup": kind(decoders.WordPiece(cleanup=True), WORDS),
    "wordpiece": kind(decoders.WordPiece(cleanup=False), WORDS),
    "end-of-word suffix": kind(decoders.BPEDecoder(), WORDS),
    "ctc": kind(decoders.CTC(), [*WORDS, "<pad>", "|"]),
    "none": kind(None, WORDS),
}
