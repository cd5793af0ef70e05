from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from engine.runs import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine.detokenizer import Detokenizer, StopFinder
from pybatch.model.text.token_text import byte_of_letter

BYTE_LEVEL = make_tokenizer()
LETTERS = "ab 🙂é"


def detokenizer(stops: Sequence[str], min_tokens: int = 0) -> Detokenizer:
    return Detokenizer(BYTE_LEVEL.text_stream(), stops, min_tokens=min_tokens)


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
    for count, token in enumerate(ids, 1):
        stopped = detokenizer.add([token], last=count == len(ids), include_stop=include_stop)
        seen.append(detokenizer.text if stopped or count == len(ids) else detokenizer.settled_text())
        if stopped:
            break
    return seen


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), min_size=1, max_size=30))
def test_a_stream_shows_the_text_of_all_ids_and_takes_nothing_back(ids: list[int]) -> None:
    seen = feed(detokenizer(["\x00\x00"]), ids)
    assert seen[-1].startswith(BYTE_LEVEL.decode(ids).partition("\x00\x00")[0])
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


@settings(max_examples=500, deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4))
def test_the_longest_end_that_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    ends = [length for length in range(1, len(text) + 1) if any(stop[:-1].startswith(text[-length:]) for stop in stops)]
    assert StopFinder(stops).held_back(text) == max(ends, default=0)


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
    stopping = detokenizer(stops)
    seen = feed(stopping, ids, include)
    expected = reference_cut(text, stops)
    if expected is None:
        assert (seen[-1], stopping.stop) == (text, None)
    else:
        before, stop = expected
        assert (seen[-1], stopping.stop) == (before + stop if include else before, stop)
    assert all(seen[-1].startswith(earlier) for earlier in seen), "the stream took back what it had shown"


def byte_letters(text: str) -> list[str]:
    """The letters that stand for single bytes in a byte-level vocabulary, for the bytes of text."""
    letters = {byte: letter for letter, byte in byte_of_letter().items()}
    return [letters[byte] for byte in text.encode()]


def test_no_stop_string_counts_in_the_first_min_tokens() -> None:
    ids = BYTE_LEVEL.encode("a") + BYTE_LEVEL.encode("b") + BYTE_LEVEL.encode("a") + BYTE_LEVEL.encode("b")
    assert len(ids) == 4
    for min_tokens, expected in ((0, ""), (1, ""), (2, "ab"), (3, "ab"), (4, "abab")):
        assert feed(detokenizer(("a",), min_tokens), ids)[-1] == expected
