"""Tokenizers of directories and GGUF files, and chat templates, against transformers and llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from gguf import GGUFWriter
from model.gguf_writing import finish
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pybatch.model import LoadedModel, ModelError, Tokenizer
from pybatch.model.text.gguf_tokenizer import tokenizer_from_gguf

TEXTS = [
    "Hello world",
    "  leading and   multiple spaces  ",
    "1234567890 12 3.14159",
    "naïve café, 日本語テキスト, 한국어, العربية, e\u0301",
    "emoji 🎉👨‍👩‍👧‍👦",
    "it's we're I'LL DON'T they'd",
    "line\nbreak\n\n\ntabs\t\tend\r\n",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "def f(x):\n    return x**2  # comment\n",
    "\u200bzero width\u00a0nbsp\x00",
    "",
]


@pytest.fixture(scope="module")
def theirs(smollm2_path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


@pytest.mark.parametrize("text", TEXTS)
def test_gguf_ids_equal_those_of_transformers(smollm2: LoadedModel, theirs: PreTrainedTokenizerFast, text: str) -> None:
    assert smollm2.tokenizer is not None
    ids = smollm2.tokenizer.encode(text)
    assert ids == theirs.encode(text)
    assert smollm2.tokenizer.encode_batch([text, "x"])[0] == ids
    assert smollm2.tokenizer.decode(ids, skip_special_tokens=False) == text
    assert smollm2.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_every_numeral_is_a_word(smollm2: LoadedModel) -> None:
    # As llama.cpp 0.3.36 gives them. (transformers' conversion of GGUF files misses that rule, which shows where a
    # numeral is several bytes.)
    assert smollm2.tokenizer is not None
    assert smollm2.tokenizer.encode(" ½ ² ٣٤") == [216, 16738, 216, 19133, 216, 164, 113, 164, 114]


def test_gguf_special_tokens(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_ids) == (49152, 1, (2,))
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"


CHATS = [
    [{"role": "user", "content": "Hi <there> & 'you'"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]
TEMPLATES = [
    None,
    "{{ bos_token }}{% for m in messages %}\n  {%- if m.role == 'system' %}\n    {% continue %}\n  {% endif %}\n"
    "[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}{{ messages | tojson }}",
    "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    "{% if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}{{ add_generation_prompt }}",
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_render_as_in_transformers(
    smollm2: LoadedModel, theirs: PreTrainedTokenizerFast, chat: list[dict[str, str]], template: str | None
) -> None:
    assert smollm2.tokenizer is not None
    tools = [{"type": "function", "function": {"name": "größe"}}]
    for prompt in (True, False):
        actual = smollm2.tokenizer.render_chat(chat, add_generation_prompt=prompt, chat_template=template, tools=tools)
        assert actual == theirs.apply_chat_template(
            chat, add_generation_prompt=prompt, chat_template=template, tools=tools, tokenize=False
        )


def test_templates_may_refuse_and_cannot_escape(smollm2: LoadedModel) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    with pytest.raises(ValueError, match="chat template: roles must alternate"):
        tokenizer.render_chat(CHATS[0], chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="unsafe"):
        tokenizer.render_chat(CHATS[0], chat_template="{{ messages.__class__.__mro__ }}")
    with pytest.raises(ValueError, match="unsafe"):
        tokenizer.render_chat(CHATS[0], chat_template="{{ messages.append(1) }}")
    assert tokenizer.render_chat([], chat_template="{{ strftime_now('%Y') }}").isdigit()


def test_a_developer_is_the_system_to_a_template_that_knows_none(smollm2: LoadedModel) -> None:
    tokenizer, chat = smollm2.tokenizer, [{"role": "developer", "content": "Be brief."}, CHATS[0][0]]
    assert tokenizer is not None
    system = [{"role": "system", "content": "Be brief."}, CHATS[0][0]]
    assert tokenizer.render_chat(chat) == tokenizer.render_chat(system)
    knows = "{% if messages[0].role == 'developer' %}{{ messages[0].content }}{% endif %}"
    assert tokenizer.render_chat(chat, chat_template=knows) == "Be brief."
    unfinished = tokenizer.render_chat(
        chat[:1], chat_template="{{ messages[0].role }}: {{ messages[0].content }}", continue_final_message=True
    )
    assert unfinished == "system: Be brief."


def word_level(directory: Path, **config: object) -> Path:
    backend = Backend(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.enable_truncation(2)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_directory(tmp_path: Path) -> None:
    directory = word_level(
        tmp_path,
        bos_token={"content": "<s>"},
        eos_token="</s>",
        chat_template="{{ bos_token }}{{ messages[0].content }}",
    )
    tokenizer = Tokenizer.from_directory(directory)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.vocab_size) == (1, (2,), 5)
    assert tokenizer.encode("a b a") == [1, 3, 4, 3]  # not cut, whatever the file says
    assert tokenizer.encode("a b", add_special_tokens=False) == [3, 4]
    assert tokenizer.decode([1, 3, 4, 2]) == "a b"
    assert tokenizer.render_chat([{"role": "user", "content": "a"}]) == "<s>a"


def test_where_a_chat_template_comes_from(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "from the config"}]
    word_level(tmp_path, chat_template=named, tokenizer_class="PreTrainedTokenizerFast")
    assert Tokenizer.from_directory(tmp_path).chat_template == "from the config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert Tokenizer.from_directory(tmp_path).chat_template == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert Tokenizer.from_directory(tmp_path).chat_template == "from jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("from its own file")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_directory(tmp_path)
    assert ours.named_chat_templates == theirs.chat_template
    chat = [{"role": "user", "content": "a"}]
    for options in ({}, {"tools": [{"name": "f"}]}, {"chat_template": "tool_use"}):
        expected = theirs.apply_chat_template(chat, tokenize=False, **options)
        assert ours.apply_chat_template(chat, tokenize=False, **options) == expected


def test_without_a_chat_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(word_level(tmp_path))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.chat_template) == (None, (), None)
    with pytest.raises(ValueError, match="chat_template: the model has none"):
        tokenizer.render_chat([])


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


def sentencepiece_file(path: Path, *, prefix: bool = True, templates: Sequence[Mapping[str, str]] = ()) -> Path:
    pieces = ["▁", "t", "h", "e", "n", "th", "▁th", "he", "▁the", "en"]
    order = {"th": -1.0, "▁th": -2.0, "▁the": -3.0, "he": -4.0, "en": -0.5}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([order.get(token, -100.0) for token in tokens])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(prefix)
    writer.add_chat_template(templates)
    finish(writer)
    return path


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(tmp_path: Path) -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece_file(tmp_path / "spm.gguf"))
    pieces = tokenizer.backend.id_to_token

    def words(text: str) -> list[str | None]:
        return [pieces(i) for i in tokenizer.encode(text)]

    assert words("the") == ["<s>", "▁the"]
    assert words("then") == ["<s>", "▁th", "en"]  # "en" is joined before "▁the" can be
    assert words("the é") == ["<s>", "▁the", "▁", "<0xC3>", "<0xA9>"]
    for text in ("the then é", " the", "日本", "two  spaces"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    bare = tokenizer_from_gguf(sentencepiece_file(tmp_path / "bare.gguf", prefix=False))
    assert bare.encode("the", add_special_tokens=False) == [
        bare.backend.token_to_id("th"),
        bare.backend.token_to_id("e"),
    ]


def test_a_gguf_file_may_have_a_chat_template_for_tools(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]
    tokenizer = tokenizer_from_gguf(sentencepiece_file(tmp_path / "model.gguf", templates=templates))
    assert tokenizer.render_chat([]) == "plain"
    assert tokenizer.render_chat([], tools=[{"name": "f"}]) == "f"
    assert tokenizer.render_chat([], chat_template="tool_use", tools=[{"name": "g"}]) == "g"


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("bert")
    finish(writer)
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.model: expected gpt2, gemma4 or llama, got 'bert'"):
        tokenizer_from_gguf(path)
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("no-such")
    writer.add_token_list(["a"])
    finish(writer)
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.pre: expected one of a.x-4.0, .*, got 'no-such'"):
        tokenizer_from_gguf(path)
