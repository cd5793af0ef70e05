"""Where Tokenizer used to be; pybatch.model.text.tokenizer is its place."""

from pybatch.model.text.tokenizer import Tokenizer as Tokenizer
