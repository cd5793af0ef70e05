"""The former place of Tokenizer, kept for programs that import it from here."""

from pybatch.model.text.tokenizer import Tokenizer as Tokenizer
