"""The tokenizer in a GGUF file's metadata."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeGuard

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from pybatch.model.checkpoints.gguf_parts import GGUFModel
from pybatch.model.config import merge_ids
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.text.guarded import guarded
from pybatch.model.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from pybatch.model.text.tokenizer import Tokenizer

MAX_TOKEN = 4096  # characters
TEMPLATE = "tokenizer.chat_template"  # the usual one; others have their names behind it
# tokenizer.ggml.token_type
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

logger = logging.getLogger(__name__)


def tokenizer_from_gguf(path: Path) -> Tokenizer:
    """Builds the tokenizer of a GGUF file. Raises ModelError if its kind or pre-tokenizer is unknown, or its metadata
    does not describe a tokenizer."""
    metadata = GGUFModel(path).metadata
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
    if kind not in ("gpt2", "gemma4", "llama"):
        raise ModelError(f"{path}: tokenizer.ggml.model: expected gpt2, gemma4 or llama, got {short(kind)}")
    tokens = Fields(metadata, str(path), "tokenizer.ggml.").texts("tokens", MAX_TOKEN)
    gemma = str(metadata.get("general.architecture")).startswith("gemma")
    if gemma:  # runs of spaces are tokens that are merged as others are; files have them as texts do, without a score
        tokens = ggml["tokens"] = [token if token.strip(" ") else "▁" * len(token) for token in tokens]
    pre = None if kind == "llama" else _pre_tokenizer(path, "gemma4" if kind == "gemma4" else ggml.get("pre"))
    backend = _sentencepiece_bpe(ggml, by_id=gemma) if pre is None else _bpe(ggml, pre)

    types = ggml.get("token_type", [])
    backend.add_special_tokens(
        [AddedToken(tokens[i], normalized=False, special=True) for i, t in enumerate(types) if t in (CONTROL, UNKNOWN)]
    )
    backend.add_tokens([AddedToken(tokens[i], normalized=False) for i, t in enumerate(types) if t == USER_DEFINED])

    ends = [ggml.get(f"{name}_token_id") for name in ("eos", "eot", "eom")]
    ids = {name: ggml.get(f"{name}_token_id") for name in ("bos", "eos", "unknown", "padding")}
    ours = {"unknown": "unk", "padding": "pad"}
    special = {f"{ours.get(name, name)}_token": tokens[i] for name, i in ids.items() if _is_id(i, tokens)}
    _add_ends(backend, ggml, special, bos_by_default=pre is None or pre.bos)
    fields = Fields(metadata, str(path))
    others = [key for key in metadata if key.startswith(f"{TEMPLATE}.")]
    return Tokenizer(
        backend,
        special_tokens=special,
        chat_template=fields.text(TEMPLATE, None),
        named_chat_templates={key.removeprefix(f"{TEMPLATE}."): fields.text(key) for key in others},
        eos_token_ids=tuple(i for i in merge_ids(*ends) if _is_id(i, tokens)),
    )


def _is_id(value: object, tokens: list[str]) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < len(tokens)


def _pre_tokenizer(path: Path, name: object) -> PreTokenizer:
    if name is None:
        logger.warning(
            "%s has no tokenizer.ggml.pre: texts are cut into words by llama.cpp's default, which may not be its own",
            path,
        )
        name = "default"
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise ModelError(
            f"{path}: tokenizer.ggml.pre: expected one of {', '.join(sorted(PRE_TOKENIZERS))}, got {short(name)}"
        )
    return PRE_TOKENIZERS[name]


def _bpe(ggml: dict[str, Any], pre: PreTokenizer) -> Backend:
    tokens = ggml["tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in ggml["merges"]]
    words: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(each), "isolated") for each in pre.expressions
    ]
    if pre.bytes:
        backend = Backend(models.BPE(vocab, merges, ignore_merges=pre.whole_words))
        words.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.decoder = decoders.ByteLevel()
    else:
        unknown = ggml.get("unknown_token_id")
        unknown = tokens[unknown] if _is_id(unknown, tokens) else None
        backend = Backend(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(words)
    return backend


def _sentencepiece_bpe(ggml: dict[str, Any], *, by_id: bool) -> Backend:
    """SentencePiece's BPE merges the pair whose result has the highest score, so the scores order the merges, or by_id
    the ids."""
    tokens, scores = ggml["tokens"], ggml["scores"]
    vocab = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    order = sorted(vocab, key=lambda token: 0 if by_id else -scores[vocab[token]])  # stable: equal ones by id
    for token in order:
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
