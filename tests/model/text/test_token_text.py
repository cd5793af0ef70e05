"""Text a token at a time: the same however it is cut, and for whole characters that of tokenizers' decoders."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model.text.kinds import KINDS
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from pybatch.model import Tokenizer

some_kind = st.sampled_from(list(KINDS))


@st.composite
def ids_in_pieces(draw: st.DrawFn) -> tuple[str, list[int], list[int], list[list[int]], bool]:
    """(kind, ids before, ids, the same cut anywhere, skip_special_tokens)."""
    name = draw(some_kind)
    any_id = st.integers(0, KINDS[name].vocab_size - 1)
    before, ids = draw(st.lists(any_id, max_size=6)), draw(st.lists(any_id, min_size=1, max_size=24))
    cuts = sorted(draw(st.sets(st.integers(1, len(ids)), max_size=8)))
    pieces = [ids[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    return name, before, ids, pieces, draw(st.booleans())


@settings(max_examples=1500, deadline=None)
@given(ids_in_pieces())
def test_text_in_pieces_is_the_text_at_once(case: tuple[str, list[int], list[int], list[list[int]], bool]) -> None:
    name, before, ids, pieces, skip = case
    stream = KINDS[name].text_stream(skip, after=before)
    texts = [stream.add(piece) for piece in pieces]
    assert "".join(texts) + stream.add([], last=True) == KINDS[name].decode(ids, skip, after=before)


@settings(max_examples=1500, deadline=None)
@given(ids_in_pieces())
def test_whole_characters_come_as_from_the_backend(
    case: tuple[str, list[int], list[int], list[list[int]], bool],
) -> None:
    name, before, ids, _, skip = case
    backend = KINDS[name].backend
    prompt, whole = (backend.decode(part, skip_special_tokens=skip) for part in (before, before + ids))
    if "\ufffd" not in whole or (name == "byte-level" and not prompt.endswith("\ufffd")):
        assert KINDS[name].decode(before + ids, skip) == whole
        if whole.startswith(prompt):
            assert prompt + KINDS[name].decode(ids, skip, after=before) == whole


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if "<0xE2>" in kind.backend.get_vocab()])
@given(data=st.binary(max_size=24))
def test_byte_tokens_are_utf8_with_broken_characters_replaced(name: str, data: bytes) -> None:
    tokenizer = KINDS[name]
    head = tokenizer.backend.token_to_id("b")
    ids = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in data]
    assert tokenizer.decode([head, *ids]) == "b" + data.decode(errors="replace")


def test_a_character_that_the_prompt_begins_is_finished() -> None:
    tokenizer = KINDS["byte-level"]
    euro = [tokenizer.backend.token_to_id(letter) for letter in "âĤ¬"]
    letter = tokenizer.backend.token_to_id("A")
    assert tokenizer.decode(euro[1:], after=euro[:1]) == "€"
    assert tokenizer.decode([letter], after=euro[:1]) == "A"
    assert tokenizer.decode([], after=euro[:2]) == ""


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece"])
def test_broken_bytes_without_end_come_at_once_and_in_linear_time(name: str) -> None:
    tokenizer = KINDS[name]
    lone = tokenizer.backend.token_to_id("ÿ" if name == "byte-level" else "<0xFF>")
    stream, times = tokenizer.text_stream(), []
    for count in (2_000, 20_000):
        begin = time.process_time()
        assert all(stream.add([lone]) == "\ufffd" for _ in range(count))
        times.append(time.process_time() - begin)
    assert times[1] < 40 * times[0]


def test_token_text_is_that_within_a_text() -> None:
    tokenizer = KINDS["sentencepiece"]
    ids = [tokenizer.backend.token_to_id(token) for token in ("▁a", "▁▁", "<0x41>", "<0xE2>", "<s>")]
    assert [tokenizer.token_text(i) for i in ids] == [" a", "  ", "A", "\ufffd", "<s>"]


def test_long_texts_of_a_large_vocabulary_are_as_fast_as_the_backend() -> None:
    words = [f"▁w{i}" for i in range(5_000)]
    backend = Backend(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.decoder = decoders.Replace("▁", " ")
    tokenizer = Tokenizer(backend)
    ids = random.Random(0).choices(range(5_000), k=100_000)
    assert tokenizer.decode(ids) == backend.decode(ids)

    def best(decode: object) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            decode(ids)  # type: ignore[operator]
            times.append(time.process_time() - begin)
        return min(times)

    assert best(tokenizer.decode) < 2 * best(backend.decode)
