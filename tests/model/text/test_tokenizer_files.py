"""The files of a model's directory, against transformers' AutoTokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from model.text.kinds import LETTERS
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from pybatch.model import ModelError, Tokenizer

SPECIALS = ["<|end|>", "<|pad|>", "<|user|>", "<|bos|>"]  # ids 256 to 259
BASE = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|end|>"}
PLAIN = {"special": False, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
TEXTS = ["hello", "<|bos|>hello", "a <think> b", "a  <tool>\n<|user|>hi<|end|>", " x  y ", ""]


def write(directory: Path, config: object, *, bos: bool = False, **files: object) -> Path:
    backend = Backend(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 259)])
    backend.save(str(directory / "tokenizer.json"))
    for name, content in {"tokenizer_config": config, "config": {"model_type": "llama"}, **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def decoder(**tokens: dict[str, Any]) -> dict[str, Any]:
    specials = {str(i): {**PLAIN, "content": text, "special": True} for i, text in enumerate(SPECIALS, 256)}
    return {**specials, **{name.removeprefix("id"): {**PLAIN, **token} for name, token in tokens.items()}}


CASES: dict[str, dict[str, Any]] = {
    "as it is": {"config": BASE},
    "post-processor with BOS": {"config": {**BASE, "add_bos_token": False}, "bos": True},
    "no post-processor, add_bos_token": {"config": {**BASE, "add_bos_token": True, "add_eos_token": True}},
    "added_tokens_decoder": {"config": {**BASE, "added_tokens_decoder": decoder(id260={"content": "<think>"})}},
    "added_tokens_decoder with flags": {
        "config": {
            **BASE,
            "added_tokens_decoder": decoder(
                id261={"content": "<tool>", "lstrip": True, "rstrip": True, "special": True},
                id260={"content": "<think>", "normalized": True},
            ),
        }
    },
    "added_tokens_decoder wins over the older files": {
        "config": {**BASE, "added_tokens_decoder": decoder()},
        "added_tokens": {"<think>": 260},
        "special_tokens_map": {"eos_token": "<|pad|>"},
    },
    "added_tokens.json": {"config": BASE, "added_tokens": {"<tool>": 261, "<think>": 260}},
    "special_tokens_map.json": {
        "config": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|pad|>"},
        "special_tokens_map": {"bos_token": "<|bos|>", "eos_token": {**PLAIN, "content": "<|end|>"}},
    },
    "special tokens that tokenizer.json lacks": {"config": {**BASE, "pad_token": "<think>", "unk_token": "<tool>"}},
    "additional_special_tokens": {"config": {**BASE, "additional_special_tokens": ["<|user|>", "<tool>"]}},
    "extra_special_tokens": {"config": {**BASE, "extra_special_tokens": {"image_token": "<think>"}}},
    "a token of the model's own": {"config": {**BASE, "image_token": "<think>"}},
    "no config": {"config": {}},
    "eos_token null": {"config": {**BASE, "eos_token": None}},
}


@pytest.mark.parametrize("name", CASES)
def test_ids_and_special_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path, **CASES[name])
    theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), Tokenizer.from_directory(directory)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text).input_ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), (text, skip)
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.eos_token_id, ours.bos_token_id, len(ours)) == (theirs.eos_token_id, theirs.bos_token_id, len(theirs))


def test_the_rest_of_what_scripts_ask_of_a_tokenizer(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    directory = write(tmp_path, {**BASE, "pad_token": "<|pad|>", "chat_template": template}, bos=True)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), Tokenizer.from_directory(directory)
    for name in ("bos", "eos", "pad", "unk"):
        assert getattr(ours, f"{name}_token") == getattr(theirs, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    assert ours.get_vocab() == theirs.get_vocab()
    assert set(ours.all_special_tokens) == set(SPECIALS) >= set(theirs.all_special_tokens)
    assert ours.convert_tokens_to_ids(ours.all_special_tokens) == ours.all_special_ids
    for tokens in ("<|end|>", "h", "unheard of", ["h", "<|pad|>"]):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for ids in (256, 70, [70, 256]):
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens([70, 256], skip_special_tokens=True) == theirs.convert_ids_to_tokens([70])
    assert ours.tokenize("a b") == theirs.tokenize("a b")
    for text in ("a b", ["a", "b c"]):
        for add in (True, False):
            assert ours(text, add_special_tokens=add)["input_ids"] == theirs(text, add_special_tokens=add)["input_ids"]
            assert ours(text).attention_mask == theirs(text).attention_mask
    assert ours.decode(70) == theirs.decode(70)
    assert ours.batch_decode([[70], [71, 256]]) == ["".join(theirs.decode(70)), theirs.decode(71)]
    chat = [{"role": "user", "content": "hi"}]
    for options in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
        for conversation in (chat, [chat, chat]):
            assert ours.apply_chat_template(conversation, **options) == (
                theirs.apply_chat_template(conversation, return_dict=False, **options)
            )
            assert ours.apply_chat_template(conversation, tokenize=False, **options) == (
                theirs.apply_chat_template(conversation, tokenize=False, **options)
            )
    assert ours.apply_chat_template(chat, return_dict=True).input_ids == theirs.apply_chat_template(chat).input_ids


def test_a_directory_without_a_vocabulary_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(ModelError, match=r"expected tokenizer\.json.*skip_tokenizer_init=True"):
        Tokenizer.from_directory(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", POINTER, "Git LFS"),
        ("tokenizer.json", b"", "empty"),
        ("tokenizer.json", b"{}", "damaged"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"', "damaged"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', "vocabulary"),
        ("tokenizer_config.json", POINTER, "Git LFS"),
        ("tokenizer_config.json", b"[]", "JSON object"),
        ("tokenizer_config.json", b"\xff\xfe", "JSON object"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "eos_token: expected a token's text"),
        ("tokenizer_config.json", b'{"eos_token": {"text": "a"}}', "eos_token: expected a token's text"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template: expected text"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', "chat_template: expected text"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}', "added_tokens_decoder: expected an object"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}', "invalid literal"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"1": 5}}', "expected a token's text"),
        ("tokenizer_config.json", b'{"additional_special_tokens": "a"}', "expected a list of tokens"),
        ("added_tokens.json", b'{"a": "b"}', "invalid literal"),
        ("added_tokens.json", b"[1]", "JSON object"),
        ("special_tokens_map.json", b"nonsense", "JSON object"),
        ("chat_template.jinja", b"\xff\xfe", "a template in UTF-8"),
        ("chat_template.json", b"{", "JSON object"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    directory = write(tmp_path, BASE)
    (directory / file).write_bytes(content)
    with pytest.raises(ModelError) as raised:
        Tokenizer.from_directory(directory)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


PLANTED = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
(Path(__file__).parent / "ran").touch()
class Planted: pass
"""


def test_code_in_a_directory_never_runs_and_nothing_is_asked(tmp_path: Path) -> None:
    """In a process of its own whose standard input would say yes."""
    auto_map = {"AutoTokenizer": ["planted.Planted", "planted.Planted"], "AutoConfig": "planted.Planted"}
    loads = "import sys\nfrom pathlib import Path\nfrom pybatch.model.text.tokenizer import Tokenizer\n"
    loads += "for directory in sys.argv[1:]:\n"
    loads += "    try:\n        Tokenizer.from_directory(Path(directory))\n"
    loads += "    except ValueError as error:\n        print('refused', error)\n"
    loads += "print('left:', sys.stdin.read())\n"
    directories = []
    for name, files in {
        "with another vocabulary": {"vocab.txt": "a\nb\n[UNK]\n"},
        "with SentencePiece": {"tokenizer.model": "no model"},
        "with nothing": {},
    }.items():
        directory = tmp_path / name
        directory.mkdir()
        directories.append(directory)
        for file in ("tokenizer_config.json", "config.json"):
            content = {"model_type": "planted", "tokenizer_class": "Planted", "auto_map": auto_map}
            (directory / file).write_text(json.dumps(content))
        for file, text in {**files, "planted.py": PLANTED.replace("__file__", repr(str(directory / "x")))}.items():
            (directory / file).write_text(text)
    result = subprocess.run(
        [sys.executable, "-c", loads, *map(str, directories)], input="y\n" * 9, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("refused") == 3, result.stdout
    assert result.stdout.endswith("left: " + "y\n" * 9 + "\n")
    assert not list(tmp_path.rglob("ran"))
