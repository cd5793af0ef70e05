"""From a constraint and a vocabulary to what llguidance runs. Imported by the trial process too, so it is light."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pybatch.engine.structured.params import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class GrammarError(ValueError):
    """A constraint that cannot be compiled, or not be followed any further."""


@dataclass(frozen=True)
class Vocabulary:
    """What each token adds to a text, by id; empty: nothing. special: ids that are no text. eos: ids that end one."""

    token_bytes: list[bytes] = field(repr=False)
    special: frozenset[int]
    eos: tuple[int, ...]


class _Tokens:
    """A vocabulary in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos[0]
        self.special_token_ids = sorted(vocabulary.special | set(vocabulary.eos))
        self.tokens = vocabulary.token_bytes
        self._of_byte = {token[0]: i for i, token in reversed([*enumerate(self.tokens)]) if len(token) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        """Only for tokens that a grammar forces, which we do not take from it: they are drawn like any other."""
        data = text.encode() if isinstance(text, str) else text
        return [self._of_byte[byte] for byte in data if byte in self._of_byte]


def make_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """Builds the trie of all tokens: some 0.3 s for 50,000."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Tokens(vocabulary)), eos_token=list(vocabulary.eos))


def grammar_text(constraint: StructuredOutputsParams) -> str:
    """The constraint as llguidance's own JSON or Lark. Raises GrammarError where it can be seen to be wrong."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        if constraint.regex is not None:
            return LLMatcher.grammar_from_regex(constraint.regex)
        if constraint.choice is not None:
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, constraint.choice)))
        if constraint.grammar is not None:
            return LLMatcher.grammar_from_lark(any_to_lark(constraint.grammar))
        schema = '{"type": "object"}' if constraint.json is None else constraint.json
        options: dict[str, object] = {"whitespace_flexible": not constraint.disable_any_whitespace}
        if constraint.whitespace_pattern is not None:
            options["whitespace_pattern"] = constraint.whitespace_pattern
        return LLMatcher.grammar_from_json_schema(schema, defaults=options)  # type: ignore[arg-type]
    except RecursionError:
        raise GrammarError("it is nested too deeply") from None
    except Exception as error:  # of the converter from GBNF, which has errors of its own
        raise GrammarError(str(error)) from error


def make_matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compiles a grammar: mostly milliseconds, but minutes for {"type": "integer", "multipleOf": 999983}. Raises
    GrammarError."""
    from llguidance import LLMatcher, LLParserLimits

    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if matcher.is_error():
        raise GrammarError(first_lines(matcher.get_error()))
    return matcher


def first_lines(error: str) -> str:
    """An error of llguidance on one line, without the many in which it may repeat the grammar."""
    if error.startswith("NoExtensionBias"):
        return "no text matches it, or none goes on from here"
    line = " ".join(error.replace("<non-verbose/>", "").split())
    return line if len(line) <= 300 else f"{line[:300]}..."
