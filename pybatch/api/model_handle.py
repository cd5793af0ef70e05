"""What LLM and AsyncLLM have in common."""

from __future__ import annotations

from typing import NoReturn

from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import expect_tokenizer
from pybatch.api.session import Session
from pybatch.engine import SamplingParams
from pybatch.engine.arguments import takes_fields_of
from pybatch.model.text.tokenizer import Tokenizer


class ModelHandle:
    """A loaded model with its engine, in the process that loaded it."""

    @takes_fields_of(EngineArgs)
    def __init__(self, arguments: EngineArgs) -> None:
        self.session = Session.open(arguments)
        self.engine = self.session.engine

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError if it was loaded without one."""
        return expect_tokenizer(self.session.tokenizer)

    def get_default_sampling_params(self) -> SamplingParams:
        """What is used where no SamplingParams are given: vLLM's defaults, but an output may fill the context."""
        return SamplingParams(max_tokens=None)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: a loaded model cannot be pickled or copied: make one in each process that needs "
            "it, and send prompts and outputs"
        )
