"""Compiles constraints away from the engine's thread, and keeps the latest of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from functools import cached_property, partial
from typing import TYPE_CHECKING

from pybatch.engine.structured.grammar import GrammarError, Vocabulary, make_matcher, make_tokenizer
from pybatch.engine.structured.matcher import Matcher
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.engine.structured.trial import Trial
from pybatch.engine.structured.workers import Workers
from pybatch.model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_THREADS = 2  # so that one grammar which takes long does not keep all others waiting; for background work one more
_KEPT = 256  # grammars
_KEPT_CHARACTERS = 4 << 20  # of all that are kept: larger constraints compile to larger grammars


class GrammarCompiler:
    """For one engine. seconds: the most that a constraint may take to compile.

    Every constraint is compiled in a process first that can be killed, since some take minutes or gigabytes, and a
    thread in the library cannot be interrupted; what compiles there within its limits is compiled here.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, *, vocab_size: int, eos_ids: frozenset[int], seconds: float
    ) -> None:
        self._text = tokenizer  # None: then nothing is to be compiled
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._seconds = seconds
        self._threads = Workers(_THREADS, "pybatch-grammar")
        self._background = Workers(1, "pybatch-grammar-background")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._kept: OrderedDict[StructuredOutputsParams, Future[Matcher]] = OrderedDict()

    def compile(self, constraint: StructuredOutputsParams, *, background: bool = False) -> Future[Matcher]:
        """A matcher at the constraint's beginning, to be copied; GrammarError if it does not compile. Errors are kept
        like grammars, so that many requests with one hostile schema take its time once. background: other constraints
        need not wait for it."""
        found = self._kept.get(constraint)
        if found is None:
            workers = self._background if background else self._threads
            found = self._kept[constraint] = workers.submit(partial(self._compile, constraint))
            while len(self._kept) > 1 and self._excess():
                self._kept.popitem(last=False)
        self._kept.move_to_end(constraint)
        return found

    def _excess(self) -> bool:
        return len(self._kept) > _KEPT or sum(each.characters for each in self._kept) > _KEPT_CHARACTERS

    # ---- on the threads ----

    def _compile(self, constraint: StructuredOutputsParams) -> Matcher:
        if not hasattr(self._local, "trial"):
            self._local.trial = Trial(self._vocabulary, seconds=self._seconds)
        grammar = self._local.trial.compile(constraint)
        return Matcher(make_matcher(self._tokenizer, grammar))

    @property
    def _vocabulary(self) -> Vocabulary:
        with self._lock:
            return self._read_vocabulary

    @property
    def _tokenizer(self) -> LLTokenizer:
        with self._lock:
            return self._made_tokenizer

    @cached_property
    def _read_vocabulary(self) -> Vocabulary:
        assert self._text is not None
        return vocabulary_of(self._text, self._vocab_size, self._eos_ids)

    @cached_property
    def _made_tokenizer(self) -> LLTokenizer:
        return make_tokenizer(self._read_vocabulary)


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int, eos_ids: frozenset[int]) -> Vocabulary:
    """The bytes that every token of a model adds to a text. Tokens that the tokenizer does not know add none. Raises
    GrammarError for a model of which grammars cannot be followed."""
    if not tokenizer.tokens_are_independent:
        raise GrammarError("the text of this tokenizer's tokens depends on those before them")
    if not eos_ids:
        raise GrammarError("the model has no end-of-sequence token")
    special = frozenset(token for token in tokenizer.all_special_ids if token < vocab_size)
    return Vocabulary([tokenizer.token_bytes(token) for token in range(vocab_size)], special, tuple(sorted(eos_ids)))
