"""How a text is cut into words before BPE, by a GGUF file's tokenizer.ggml.pre: the names are those of llama.cpp
(llama-vocab.cpp), the expressions those of the models' own tokenizer.json files. Each cuts what those before it have
left in one piece."""

from __future__ import annotations

from typing import NamedTuple


class PreTokenizer(NamedTuple):
    expressions: tuple[str, ...]
    whole_words: bool = False  # a word that is a token is not split
    bos: bool = False  # texts begin with it, where a file does not say
    nfc: bool = False  # texts are normalised
    bytes: bool = True  # of UTF-8 are what tokens are made of; else characters, with a space as ▁


def _characters(ranges: str) -> str:
    """The inside of a character class, of ranges in hexadecimal."""
    return "".join("-".join(rf"\x{{{end}}}" for end in each.split("-")) for each in ranges.split())


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
)
SEED_CODER = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
EXAONE_MOE = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
HALVINGS = "|".join(rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))

# A word ends where lower case turns to upper.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
ONE_NUMERAL = O200K.replace("{1,3}", "")
TEKKEN = ONE_NUMERAL.replace(f"{CONTRACTIONS}?", "")
KIMI = r"\p{Han}+|" + O200K.replace(r"\p{M}]", r"\p{M}&&[^\p{Han}]]").replace(r"[\r\n/]*", r"[\r\n]*")
THREES = r"\d{1,3}(?=(?:\d{3})*(?!\d))"  # of digits, counted from the last

CHINESE = "4e00-9fa5 3040-309f 30a0-30ff"  # and kana
PUNCTUATION = "21-2f 3a-7e ff01-ff0f ff1a-ff5e 2018-201f 3000-3002"
ASIAN = (
    "4e00-9fff 3400-4dbf f900-faff 3040-309f 30a0-30ff ff65-ff9f 2f00-2fdf 0e00-0e7f 0e80-0eff 1780-17ff 1000-109f "
    "aa60-aa7f a9e0-a9ff ac00-d7af 1100-11ff"
)
CASED_LETTERS = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376-377 37b-37d 37f 386 388-38a 38c 38e-3a1 "
    "3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a "
    "1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 "
    "1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 "
    "212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183-2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2-2cf3 a640-a66d "
    "a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 "
    "104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"
)
_OTHERS = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
_CODE = r"[!-/:-~&&[^A-Za-z]][A-Za-z]+"  # a mark before a name
DEEPSEEK3 = (r"\p{N}{1,3}", f"[{_characters(CHINESE)}]+", rf"{_CODE}|{_OTHERS}[\r\n]*|{SPACES}")
BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"  # noqa: RUF001

_KINDS = {
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert jina-es jina-de "
    "jina-v2-es jina-v2-de": PreTokenizer((GPT2,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": PreTokenizer((r"\p{N}", GPT2)),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": PreTokenizer(
        (LLAMA3,), whole_words=True, bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((LLAMA3,)),
    "jais-2": PreTokenizer((LLAMA3.replace(r"\s+(?!\S)|\s+", rf"{HALVINGS}|\s"),)),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", QWEN2.replace(r"|\p{N}|", r"|\p{N}+|")), whole_words=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez": PreTokenizer((QWEN2,), nfc=True),
    "stablelm2 hunyuan solar-open grok-2": PreTokenizer((QWEN2,)),
    "ufakzeka": PreTokenizer((QWEN2.removeprefix(f"{CONTRACTIONS}|"),)),
    "laguna": PreTokenizer((r"[^\n]+|\n+", QWEN2)),
    "qwen35": PreTokenizer((QWEN35,), nfc=True),
    "seed-coder": PreTokenizer((SEED_CODER,)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer((BAILING,)),
    "exaone-moe": PreTokenizer((EXAONE_MOE,)),
    "tekken": PreTokenizer((TEKKEN,), whole_words=True, bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": PreTokenizer((O200K,)),
    "granite-embed-multi-97m": PreTokenizer((O200K,), whole_words=True),
    "tiny_aya cohere2moe": PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", O200K)),
    "kimi-k2": PreTokenizer((KIMI,)),
    "youtu": PreTokenizer(
        (
            f"[{_characters('ac00-d7a3 3131-318e')}]+"
            f"|[{_characters('ff01 2026 201c 201d 2018 2019 2014 ff1a ff1b ff0c 3001-303f fe30-fe4f')}]+"
            f"|[{_characters('3105-312f')}]+|[{_characters(CHINESE)}]+",
            ONE_NUMERAL,
        ),
        whole_words=True,
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_characters(CASED_LETTERS)}]+",
            rf"\s?[{_characters(PUNCTUATION)}]+",
            r"\s+$",
            f"[{_characters('4e00-9fa5 0800-4e00 ac00-d7ff')}]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{_characters('4e00-9fa5 0800-4e00 ac00-d7ff')}]+", r"\p{N}")
    ),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer(DEEPSEEK3),
    "spark2_5": PreTokenizer((*DEEPSEEK3[:2], rf"{_CODE}|{_OTHERS}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    "afmoe": PreTokenizer((THREES, f"[{_characters(ASIAN)}]+", DEEPSEEK3[2])),
    "superbpe": PreTokenizer((r"\p{N}+", THREES)),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]")),
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "poro-chat bloom gpt3-finnish": PreTokenizer((BLOOM,)),
    "viking": PreTokenizer((BLOOM, r"\p{N}")),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        bos=True,
    ),
    "gemma4 granite-embed-multi-311m": PreTokenizer((r"[^\n]+|\n+",), bos=True, bytes=False),
    "sarvam-moe": PreTokenizer((r"[^\n]+|\n+",), bytes=False),
}
PRE_TOKENIZERS = {name: kind for names, kind in _KINDS.items() for name in names.split()}
