"""The tokenizer of a model directory: tokenizer.json and the files beside it, read as transformers' AutoTokenizer does.

Code that a directory brings along (auto_map) is never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from pybatch.model.checkpoints.files import read_json, unreadable
from pybatch.model.errors import ModelError
from pybatch.model.text.guarded import guarded

NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
OTHER_VOCABULARIES = ("*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
OTHER_TEMPLATES = "additional_chat_templates"  # a folder of them, each in a file with its name
ADVICE = "give tokenizer=... to take it from elsewhere, or skip_tokenizer_init=True to go without one"

# What these classes of transformers take where tokenizer_config.json is silent.
CLASS_DEFAULTS = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}


@dataclass(frozen=True)
class TokenizerFiles:
    """special_tokens: the texts of "bos_token" and the like. chat_templates: by name; the usual one is "default"."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str]
    chat_templates: dict[str, str]


def read_tokenizer(directory: Path) -> TokenizerFiles:
    """Reads tokenizer.json, or has transformers convert another vocabulary. Raises ModelError for files that are
    missing, damaged or not what their names say."""
    config = read_json(directory / "tokenizer_config.json")
    path = directory / "tokenizer.json"
    if path.exists():
        backend, defaults = _from_file(path), _class_defaults(config)
    else:
        backend, defaults = _converted(directory)
    try:
        special_tokens = _add_tokens(directory, backend, config, defaults)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{directory}: {' '.join(str(error).split())}") from error
    return TokenizerFiles(backend, special_tokens, _chat_templates(directory, config))


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        backend: tokenizers.Tokenizer = guarded(lambda: tokenizers.Tokenizer.from_file(str(path)))
    except (ValueError, TypeError) as error:
        raise unreadable(path, "a file of the tokenizers library", error) from error
    if backend.get_vocab_size(with_added_tokens=True) == 0:
        raise ModelError(f"{path}: expected a vocabulary, got none; {ADVICE}")
    return backend


def _converted(directory: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """(tokenizer, its named special tokens) out of other files than tokenizer.json."""
    expected = f"{directory}: expected tokenizer.json"
    if not any(path for pattern in OTHER_VOCABULARIES for path in directory.glob(pattern)):
        raise ModelError(f"{expected}, and there is no other vocabulary; {ADVICE}")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ModelError(f"{expected}; for other tokenizer files: pip install transformers sentencepiece") from error
    try:
        theirs = guarded(
            lambda: AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        )
        backend, named = theirs.backend_tokenizer, dict(theirs.special_tokens_map)
    except Exception as error:  # transformers raises many kinds
        said = " ".join(str(error).split())[:300]
        raise ModelError(f"{expected}, and transformers could not make one ({type(error).__name__}: {said})") from error
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ModelError(f"{expected}, and transformers has only a slow tokenizer for this model")
    if backend.get_vocab_size(with_added_tokens=False) <= len(set(named.values())):
        raise ModelError(f"{expected}, and transformers found no vocabulary in the other files; {ADVICE}")
    return backend, {name: str(token) for name, token in named.items() if isinstance(token, str)}


def _class_defaults(config: Mapping[str, Any]) -> dict[str, str]:
    return CLASS_DEFAULTS.get(str(config.get("tokenizer_class")).removesuffix("Fast"), {})


def _add_tokens(
    directory: Path, backend: tokenizers.Tokenizer, config: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, str]:
    """Adds the tokens that the files beside tokenizer.json name and it lacks. Returns the named special ones.

    added_tokens_decoder replaces the older special_tokens_map.json and added_tokens.json, which are read without it.
    """
    settings = {**{name: token for name, token in defaults.items() if backend.token_to_id(token) is not None}, **config}
    decoder = config.get("added_tokens_decoder")
    if decoder is None:
        settings |= read_json(directory / "special_tokens_map.json")
    named = _named_tokens(settings)
    special = [*named.values(), *_listed_tokens(settings)]
    if decoder is not None:
        if not isinstance(decoder, Mapping):
            raise ModelError(f"added_tokens_decoder: expected an object, got {type(decoder).__name__}")
        added = [_added_token(f"added_tokens_decoder[{i!r}]", token) for i, token in sorted(decoder.items(), key=_id)]
    else:
        older = sorted(read_json(directory / "added_tokens.json").items(), key=lambda item: int(item[1]))
        added = [AddedToken(text, special=text in special, normalized=text not in special) for text, _ in older]
    if added:
        backend.add_tokens(added)
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [text for text in dict.fromkeys(special) if text not in known]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])
    return named


def _named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The usual special tokens, and those that the model has a name of its own for, such as "image_token"."""
    named = {name: text for name in NAMED_TOKENS if (text := _text(name, settings.get(name))) is not None}
    own = {name: text for name, text in settings.items() if name.endswith("_token") and isinstance(text, str) and text}
    listed = settings.get("extra_special_tokens")
    more = {name: _text(name, token) for name, token in listed.items()} if isinstance(listed, dict) else {}
    return {**named, **own, **{name: text for name, text in more.items() if text is not None}}


def _listed_tokens(settings: Mapping[str, Any]) -> list[str]:
    texts: list[str] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = settings.get(name) or []
        if not isinstance(tokens, list | dict):
            raise ModelError(f"{name}: expected a list of tokens, got {type(tokens).__name__}")
        if isinstance(tokens, list):
            texts += [text for token in tokens if (text := _text(name, token)) is not None]
    return texts


def _text(name: str, token: Any) -> str | None:
    """A token is its text, or an object with the text as "content"."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is None and token is None:
        return None
    if not isinstance(content, str):
        raise ModelError(f"{name}: expected a token's text or an object with it as 'content', got {token!r:.80}")
    return content or None


def _added_token(name: str, token: Any) -> AddedToken:
    text = _text(name, token)
    flags = {key: bool(value) for key, value in token.items() if key in FLAGS} if isinstance(token, Mapping) else {}
    return AddedToken(text or "", **flags)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _id(item: tuple[str, Any]) -> int:
    return int(item[0])


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """By name. Files of their own stand in place of what others have."""
    usual = directory / "chat_template.jinja"
    own = {path.stem: _template(path) for path in sorted((directory / OTHER_TEMPLATES).glob("*.jinja"))}
    if usual.exists():
        own["default"] = _template(usual)
    if own:
        return own
    template = read_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    entries = template if isinstance(template, list) else []
    pairs = [(each.get("name"), each.get("template")) for each in entries if isinstance(each, Mapping)]
    if len(pairs) < max(len(entries), 1) or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ModelError(
            f"{directory}: chat_template: expected text, or a list of objects with 'name' and 'template', "
            f"got {template!r:.80}"
        )
    return {str(name): str(text) for name, text in pairs}


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise unreadable(path, "a template in UTF-8", error) from error
