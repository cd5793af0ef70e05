"""Texts are cut into words as the models' own tokenizers cut them, by the name that a GGUF file has for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFWriter
from model.gguf_writing import finish
from tokenizers import Regex, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35

from pybatch.model import Tokenizer
from pybatch.model.text.gguf_tokenizer import tokenizer_from_gguf
from pybatch.model.text.pre_tokenizers import PRE_TOKENIZERS

BYTES = {spelt: byte for byte, spelt in bytes_to_unicode().items()}
TEXTS = [
    "Hello world, it's we're I'LL DON'T they'd 1234567 12 3.14159 x12y",
    "  leading and   multiple spaces  ",
    "naïve café, 日本語テキスト한국어 العربية e\u0301 हिन्दी",
    "line\nbreak\n\n\ntabs\t\tend\r\n  \n",
    "def f(x):\n    return x**2  # comment // a/b/\n",
    "camelCase HTTPServer iPhone ΑΒγδ ½ ² ٣٤ 🎉👨\u200d👩 \u00a0nbsp",
    "",
]


def pieces_by(steps: list[pre_tokenizers.PreTokenizer], text: str) -> list[str]:
    """As text; bytes that are no whole character, as the tokenizer spells them."""
    found = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
    return [bytes(BYTES[c] for c in piece).decode("utf-8", "surrogateescape") for piece, _ in found]


def words(pre: str, text: str) -> list[str]:
    steps = [pre_tokenizers.Split(Regex(each), "isolated") for each in PRE_TOKENIZERS[pre].expressions]
    return pieces_by([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)], text)


def split(expression: str) -> list[pre_tokenizers.PreTokenizer]:
    steps = [pre_tokenizers.Split(Regex(expression), "isolated")]
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


GPT2 = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
DIGITS = [pre_tokenizers.Digits(individual_digits=True), *GPT2]
DEFAULT = [
    pre_tokenizers.Punctuation("contiguous"),
    split(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")[0],
    pre_tokenizers.Digits(individual_digits=False),
    *split("[0-9][0-9][0-9]"),
]
BLOOM = split(r" ?[^(\s|[.,!?…。，、।۔،])]+")  # noqa: RUF001
THEIRS = {
    **{name: split(expression) for name, expression in GGUF_PRE_TOKENIZER_SPLITS.items()},
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"), GPT2),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(("llama-bpe", "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), split(TikTokenConverter().pattern)),
    **dict.fromkeys(("qwen2", "stablelm2", "hunyuan", "solar-open", "grok-2"), split(QWEN2)),
    "qwen35": split(QWEN35),
    "default": DEFAULT,
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), BLOOM),
    "viking": [BLOOM[0], pre_tokenizers.Digits(individual_digits=True), BLOOM[1]],
}


@pytest.mark.parametrize("pre", THEIRS)
def test_words_are_those_of_the_model(pre: str) -> None:
    for text in TEXTS:
        assert words(pre, text) == pieces_by(THEIRS[pre], text), text


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words_make_up_the_text(pre: str) -> None:
    for text in TEXTS:
        assert "".join(words(pre, text)) == text


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-4o", "HTTPServer's 12345 don'T a/\n\nb", "HTTPServer's| |123|45| don'T| a|/\n\n|b"),
        ("gpt-4o", "iPhone camelCase ÀBc", "i|Phone| camel|Case| ÀBc"),
        ("tekken", "HTTPServer's 123", "HTTPServer|'s| |1|2|3"),
        ("granite-embed-multi-97m", "camelCase 1234", "camel|Case| |123|4"),
        ("kimi-k2", "Hi中文abc漢字 ABc日x!/\n", "Hi|中文|abc|漢字| ABc|日|x|!/\n"),
        ("kimi-k2", "don't 12345", "don't| |123|45"),
        ("tiny_aya", "1234567 12", "1|234|567| |12"),
        ("superbpe", "a b 1234567 c", "a b |1|234|567| c"),
        ("afmoe", "12345 中文ไทย ab !x", "12|345| |中文ไทย| ab| !|x"),
        ("deepseek-v3", "12345 中文かな ab.cd  !\n", "123|45| |中文かな| ab|.cd| | !\n"),
        ("hunyuan-dense", "x = _name", "x| =| _|name"),
        ("spark2_5", "12 ab!\n\n", "1|2| ab|!|\n|\n"),
        ("deepseek-llm", "Ab éÀ 中文 12 a!?\n\n", "Ab| éÀ| |中文| |12| a|!?|\n|\n"),
        ("deepseek-coder", "ab cd_1 中文 12\n", "ab| cd|_|1| |中文| |1|2|\n"),
        ("falcon", "ab `x` <=+1234 56", "ab| |`|x|`| |<=+|123|4| 56"),
        ("default", "ab `x` <=+1234 56", "ab| `|x|`| |<=+|123|4| |56"),
        ("minicpm5", "it's 12345", "it|'s| |123|45"),
        ("jais-2", "a   b\n  c", "a|  | b|\n| | c"),
        ("ufakzeka", "Ali'nin 12", "Ali|'nin| |1|2"),
        ("qwen2", "Ali'd 12", "Ali|'d| |1|2"),
        ("laguna", "a!\n\n b", "a|!|\n\n| b"),
        ("seed-coder", "a!\n b 12", "a|!|\n| b| |1|2"),
        ("bailingmoe", "it'S a!!\n\n\n1", "it|'S| a|!!\n\n\n|1"),
        ("exaone-moe", "ab cd!\n\n12", "ab cd|!\n|\n|1|2"),
        ("youtu", "한국어中文、ab 12", "한국어|中文|、|ab| |1|2"),
        ("chameleon", "<sentinel:12>IMGIMGABZ  x.1", "<|sentinel|:|1|2|>|IMGIMGABZ|  |x|.|1"),
        ("gemma4", "a b\n\nc", "a b|\n\n|c"),
        ("bloom", "Hi there. ok!", "Hi| there|.| ok|!"),
        ("viking", "x12 y", "x|1|2| y"),
    ],
)
def test_words_by_example(pre: str, text: str, expected: str) -> None:
    assert words(pre, text) == expected.split("|")


def write(
    path: Path, tokens: list[str], merges: list[str], pre: str | None, model: str = "gpt2", **ids: int
) -> Tokenizer:
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3 if token.startswith("<s") else 1 for token in tokens])
    for key, number in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    finish(writer)
    return tokenizer_from_gguf(path)


ALPHABET = ["<s>", *bytes_to_unicode().values(), "zz"]


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("falcon3", True), ("dbrx", False), ("youtu", True)])
def test_a_word_that_is_a_token_stays_whole_where_the_model_has_it_so(pre: str, whole: bool, tmp_path: Path) -> None:
    tokenizer = write(tmp_path / "model.gguf", [*ALPHABET, "abc"], ["z z"], pre)
    assert (len(tokenizer.encode("abc", add_special_tokens=False)) == 1) == whole


@pytest.mark.parametrize(("pre", "bos"), [("llama-bpe", True), ("tekken", True), ("chameleon", True), ("gpt-2", False)])
def test_texts_begin_with_bos_where_the_model_has_it_so(pre: str, bos: bool, tmp_path: Path) -> None:
    tokenizer = write(tmp_path / "model.gguf", ALPHABET, ["z z"], pre, bos=0)
    assert (tokenizer.encode("x")[0] == 0) == bos


def test_a_file_without_a_pre_tokenizer_is_cut_by_the_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = write(tmp_path / "model.gguf", [*ALPHABET, "12", "123"], ["1 2", "12 3"], None)
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("12345")] == ["123", "4", "5"]
    assert "has no tokenizer.ggml.pre: texts are cut into words by llama.cpp's default" in caplog.text


def test_tokens_of_characters_with_bytes_for_the_others(tmp_path: Path) -> None:
    """Gemma 4's."""
    tokens = [
        "<pad>",
        "<eos>",
        "<s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abc\n",
        "ab",
        "▁ab",
        "▁▁",
    ]
    ids = {"bos": 2, "unknown": 3}
    tokenizer = write(tmp_path / "model.gguf", tokens, ["a b", "▁ ab", "▁ ▁"], None, "gemma4", **ids)
    pieces = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("ab ab  cé\nab")]
    assert pieces == ["<s>", "ab", "▁ab", "▁▁", "c", "<0xC3>", "<0xA9>", "\n", "ab"]
    for text in ("ab ab  cé\nab", " a", "日本 b"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_runs_of_spaces_of_gemma_are_merged_as_other_tokens(tmp_path: Path) -> None:
    """As the model's own tokenizer does, where llama.cpp takes the longest run that is a token."""
    writer = GGUFWriter(tmp_path / "model.gguf", "gemma2")
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "  ", "▁a", "   ", "▁", "a"]
    writer.add_token_list(tokens)
    writer.add_token_scores([-1000.0, -1000.0, -1000.0, -1.0, -1000.0, -2.0, -3.0])
    writer.add_token_types([2, 3, 4, 1, 4, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_add_space_prefix(False)
    finish(writer)
    tokenizer = tokenizer_from_gguf(tmp_path / "model.gguf")
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("a   a")] == ["<s>", "a", "▁▁", "▁a"]
    assert tokenizer.decode(tokenizer.encode("a   a")) == "a   a"
