"""A place in a grammar, and the masks that it makes, for tokenizers of several kinds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from model.text.kinds import KINDS

from pybatch.engine.structured.compiler import vocabulary_of
from pybatch.engine.structured.grammar import GrammarError, grammar_text, make_matcher, make_tokenizer
from pybatch.engine.structured.matcher import Matcher, fill_masks
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.model import Tokenizer

MORE = 5  # tokens of the model that its tokenizer does not know
FOLLOWED = [name for name, kind in KINDS.items() if kind.tokens_are_independent]


def eos_of(tokenizer: Tokenizer) -> int:
    return int(tokenizer.convert_tokens_to_ids("<|end|>"))


def matcher(tokenizer: Tokenizer, **constraint: object) -> Matcher:
    vocabulary = vocabulary_of(tokenizer, len(tokenizer) + MORE, frozenset({eos_of(tokenizer)}))
    grammar = grammar_text(StructuredOutputsParams(**constraint))  # type: ignore[arg-type]
    return Matcher(make_matcher(make_tokenizer(vocabulary), grammar))


def allowed(tokenizer: Tokenizer, *matchers: Matcher, drafts: list[list[int]] | None = None) -> list[set[int]]:
    rows = len(matchers) + sum(map(len, drafts or []))
    masks = torch.full((rows, -(-(len(tokenizer) + MORE) // 32)), -1, dtype=torch.int32)
    places, row = [], 0
    for i, each in enumerate(matchers):
        places.append((each, row))
        row += 1 + (len(drafts[i]) if drafts else 0)
    fill_masks(masks, places, drafts)
    bits = np.unpackbits(masks.numpy().view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(each).tolist()) for each in bits]


@pytest.mark.parametrize("kind", FOLLOWED)
def test_a_mask_allows_exactly_the_tokens_whose_text_goes_on(kind: str) -> None:
    """Without the specials, the end, and those that the tokenizer does not know."""
    tokenizer, places = KINDS[kind], (" a", "ab日é🙂", " abx")
    special = set(tokenizer.all_special_ids)
    texts = ["".join(each).encode() for each in product(*places)]
    beginnings = {text[:n] for text in texts for n in range(1, len(text) + 1)}
    expected = {
        token for token in range(len(tokenizer)) if token not in special and tokenizer.token_bytes(token) in beginnings
    }
    pattern = "".join(f"[{each}]" for each in places)
    assert allowed(tokenizer, matcher(tokenizer, regex=pattern)) == [expected]


def test_tokens_of_neighbours_that_change_each_other_are_refused() -> None:
    refused = [name for name in KINDS if name not in FOLLOWED]
    assert refused
    for name in refused:
        with pytest.raises(GrammarError, match="depends on those before them"):
            matcher(KINDS[name], regex="a")
    with pytest.raises(GrammarError, match="no end-of-sequence token"):
        vocabulary_of(KINDS["byte-level"], 10, frozenset())


def test_tokens_are_taken_checked_and_taken_back() -> None:
    tokenizer = KINDS["byte-level"]
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    place = matcher(tokenizer, regex="ab+c")
    assert place.count_valid([a, b, b, c]) == 4
    assert place.count_valid([a, c, b]) == 1
    place.accept([a, b])
    assert allowed(tokenizer, place) == [{b, c}]
    copied = place.copy()
    assert copied.ends(c)
    assert not place.ended, "a copy goes its own way"
    assert allowed(tokenizer, copied) == [{eos_of(tokenizer)}]
    place.rollback(1)
    assert allowed(tokenizer, place) == [{b}]
    with pytest.raises(GrammarError):
        place.accept([c])
    assert allowed(tokenizer, place) == [set()], "after an error there is no way on"


def test_masks_of_drafts_stand_behind_the_first_and_move_nothing() -> None:
    tokenizer = KINDS["byte-level"]
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    first, second = matcher(tokenizer, regex="ab+c"), matcher(tokenizer, regex="[ab]c")
    for _ in range(2):
        rows = allowed(tokenizer, first, second, drafts=[[a, b, b], [c]])
        assert rows[:4] == [{a}, {b}, {b, c}, {b, c}]
        assert rows[4:] == [{a, b}, set()], "what follows a draft that is not allowed is not drawn from"
    assert allowed(tokenizer, first, second) == [{a}, {a, b}]
