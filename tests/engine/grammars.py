"""Grammars that many engines share, so that not each of them starts a process to compile them."""

from __future__ import annotations

from pybatch.engine import Engine
from pybatch.engine.grammars import GrammarQueue
from pybatch.engine.structured.compiler import GrammarCompiler
from pybatch.model.loader import LoadedModel


class SharedGrammars:
    """Of engines of one model. What one of them has compiled is there for the others at once."""

    def __init__(self, model: LoadedModel) -> None:
        eos = frozenset(model.decoder.config.eos_token_ids)
        size = model.decoder.config.vocab_size
        self._compiler = GrammarCompiler(model.tokenizer, vocab_size=size, eos_ids=eos, seconds=10)

    def given_to(self, engine: Engine) -> Engine:
        engine._entrance._grammars = GrammarQueue(lambda: self._compiler)
        return engine
