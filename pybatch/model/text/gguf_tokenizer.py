"""The tokenizer in a GGUF file's metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from pybatch.model.checkpoints.gguf_file import GGUFFile
from pybatch.model.config import merge_ids
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields
from pybatch.model.text.guarded import guarded
from pybatch.model.text.tokenizer import Tokenizer

MAX_TOKEN = 4096  # characters
# tokenizer.ggml.token_type
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

# How a text is cut into words before byte-level BPE, by tokenizer.ggml.pre: the expressions of the models' own
# tokenizer.json files.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = CL100K.replace("DIGITS", "{1,3}"), CL100K.replace("DIGITS", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "qwen2": (QWEN2,),
    "deepseek-r1-qwen": (QWEN2,),
    "tekken": (TEKKEN,),
}
WHOLE_WORDS_FIRST = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "tekken",
)  # a word that is a token is not split
NORMALIZED = ("qwen2", "deepseek-r1-qwen")  # NFC


def tokenizer_from_gguf(path: Path) -> Tokenizer:
    """Builds the tokenizer of a GGUF file. Raises ModelError if its kind or pre-tokenizer is unknown, or its metadata
    does not describe a tokenizer."""
    metadata = GGUFFile(path).metadata
    try:
        tokenizer: Tokenizer = guarded(lambda: _tokenizer(path, metadata))
        return tokenizer
    except ModelError:
        raise
    except Exception as error:  # a value of any type may be anywhere, and tokenizers raises Exception itself
        raise ModelError(
            f"{path}: tokenizer.ggml does not make a tokenizer ({type(error).__name__}: {error})"
        ) from error


def _tokenizer(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kind = ggml.get("model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{path}: tokenizer.ggml.model: expected 'gpt2' or 'llama', got {kind!r}")
    tokens = Fields(metadata, str(path), "tokenizer.ggml.").texts("tokens", MAX_TOKEN)
    backend = _byte_level_bpe(path, ggml) if kind == "gpt2" else _sentencepiece_bpe(ggml)

    types = ggml.get("token_type", [])
    backend.add_special_tokens(
        [AddedToken(tokens[i], normalized=False, special=True) for i, t in enumerate(types) if t in (CONTROL, UNKNOWN)]
    )
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i, t in enumerate(types) if t == USER_DEFINED])

    ends = [ggml.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = {name: ggml.get(f"{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    names = {"unknown": "unk", "padding": "pad"}
    special = {f"{names.get(name, name)}_token": tokens[i] for name, i in ids.items() if _is_id(i, tokens)}
    _add_ends(backend, ggml, special, bos_by_default=kind == "llama" or ggml.get("pre") in WHOLE_WORDS_FIRST)
    return Tokenizer(
        backend,
        special_tokens=special,
        chat_template=Fields(metadata, str(path)).text("tokenizer.chat_template", None),
        eos_token_ids=tuple(i for i in merge_ids(*ends) if _is_id(i, tokens)),
    )


def _is_id(value: object, tokens: list[str]) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < len(tokens)


def _byte_level_bpe(path: Path, ggml: dict[str, Any]) -> Backend:
    pre = ggml.get("pre", "(none)")
    if pre not in PRE_TOKENIZERS:
        raise ModelError(f"{path}: tokenizer.ggml.pre: expected one of {', '.join(PRE_TOKENIZERS)}, got {pre!r}")
    vocab = {token: i for i, token in enumerate(ggml["tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in ggml["merges"]]
    backend = Backend(models.BPE(vocab, merges, ignore_merges=pre in WHOLE_WORDS_FIRST))
    if pre in NORMALIZED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(words), "isolated") for words in PRE_TOKENIZERS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(ggml: dict[str, Any]) -> Backend:
    """SentencePiece's BPE merges the pair whose result has the highest score, so the scores order the merges."""
    tokens, scores = ggml["tokens"], ggml["scores"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for token in sorted(vocab, key=lambda token: -scores[vocab[token]]):  # stable: equal scores by id
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    unknown = ggml.get("unknown_token_id", 0)
    unknown = unknown if _is_id(unknown, tokens) else 0
    backend = Backend(models.BPE(vocab, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
    prefix = ggml.get("add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if prefix else [spaces])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _add_ends(backend: Backend, ggml: dict[str, Any], special: dict[str, str], *, bos_by_default: bool) -> None:
    """Begins and ends every text with BOS and EOS, where the file asks for it."""
    bos = special.get("bos_token") if ggml.get("add_bos_token", bos_by_default) else None
    eos = special.get("eos_token") if ggml.get("add_eos_token", False) else None
    ends = [token for token in (bos, eos) if token is not None]
    if ends:
        template = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
        known = [(token, backend.token_to_id(token)) for token in ends]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=known)
