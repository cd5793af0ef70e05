from __future__ import annotations

from itertools import pairwise

from engine.runs import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from pybatch.engine.execution.detokenizer import Detokenizer
from pybatch.model import Tokenizer

BYTE_LEVEL = make_tokenizer()
LETTERS = "ab 🙂é"


def sentencepiece_like() -> Tokenizer:
    """A decoder of Llama 2's kind: word marks, bytes, and the first space stripped."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁🙂", "a"]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


SENTENCEPIECE = sentencepiece_like()


def reference_cut(text: str, stops: list[str]) -> tuple[str, str] | None:
    """(text before the stop string, stop string), by growing the text a character at a time."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return None


def feed(detokenizer: Detokenizer, ids: list[int], include_stop: bool = False) -> list[str]:
    """Token by token; returns what a reader of the stream sees after each."""
    seen = []
    for count in range(1, len(ids) + 1):
        stopped = detokenizer.update(ids[:count], last=count == len(ids), include_stop=include_stop)
        seen.append(detokenizer.text if stopped or count == len(ids) else detokenizer.settled_text())
        if stopped:
            break
    return seen


def check_pieces(tokenizer: Tokenizer, ids: list[int]) -> None:
    seen = feed(Detokenizer(tokenizer, (), skip_special_tokens=True), ids)
    assert seen[-1] == tokenizer.decode(ids)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), min_size=1, max_size=30))
def test_text_in_pieces_is_the_text_of_all_ids_even_of_broken_utf8(ids: list[int]) -> None:
    check_pieces(BYTE_LEVEL, ids)


# Llama 2's decoder turns a whole run of bytes into U+FFFD when one more byte breaks it: no stream can follow that.
@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(257, SENTENCEPIECE.vocab_size - 1) | st.text("aé日🙂", min_size=1, max_size=2), min_size=1))
def test_text_in_pieces_is_the_text_of_all_ids_where_the_first_space_is_stripped(units: list[int | str]) -> None:
    as_ids = [[unit] if isinstance(unit, int) else [byte + 1 for byte in unit.encode()] for unit in units]
    check_pieces(SENTENCEPIECE, [i for ids in as_ids for i in ids])


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text(LETTERS, min_size=1, max_size=3), min_size=1, max_size=12),
    stops=st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=3),
    include=st.booleans(),
    as_bytes=st.booleans(),
)
def test_stop_strings_are_found_wherever_tokens_end(
    pieces: list[str], stops: list[str], include: bool, as_bytes: bool
) -> None:
    if as_bytes:  # each character over as many tokens as it has bytes
        ids = [BYTE_LEVEL.backend.token_to_id(c) for c in byte_letters("".join(pieces))]
    else:
        ids = [i for piece in pieces for i in BYTE_LEVEL.encode(piece)]
    text = "".join(pieces)
    assert BYTE_LEVEL.decode(ids) == text
    detokenizer = Detokenizer(BYTE_LEVEL, stops, skip_special_tokens=True)
    seen = feed(detokenizer, ids, include)
    expected = reference_cut(text, stops)
    if expected is None:
        assert (seen[-1], detokenizer.stop) == (text, None)
    else:
        before, stop = expected
        assert (seen[-1], detokenizer.stop) == (before + stop if include else before, stop)
    assert all(seen[-1].startswith(earlier) for earlier in seen), "the stream took back what it had shown"


def byte_letters(text: str) -> list[str]:
    """The letters that stand for single bytes in a byte-level vocabulary, for the bytes of text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letter[byte] for byte in text.encode()]


def test_no_stop_string_counts_in_the_first_min_tokens() -> None:
    ids = BYTE_LEVEL.encode("a") + BYTE_LEVEL.encode("b") + BYTE_LEVEL.encode("a") + BYTE_LEVEL.encode("b")
    assert len(ids) == 4
    for min_tokens, expected in ((0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "abab")):
        detokenizer = Detokenizer(BYTE_LEVEL, ("a",), skip_special_tokens=True, min_tokens=min_tokens)
        assert feed(detokenizer, ids)[-1] == expected
