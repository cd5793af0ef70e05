"""What LLM.beam_search takes and gives; names and fields are vLLM's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pybatch.engine.arguments import suggest_names
from pybatch.engine.outputs import FinishReason, RequestOutput, TokenLogprobs
from pybatch.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer


@suggest_names
@dataclass(slots=True)
class BeamSearchParams:
    """How LLM.beam_search searches. A bad value raises ValueError, an unknown keyword TypeError.

    temperature: changes nothing, since nothing is drawn. include_stop_str_in_output: keep the end-of-sequence token.
    length_penalty and early_stopping (which vLLM has not): as SamplingParams has them. vLLM never stops early, which is
    nearest to "never" here, and counts the prompt's tokens in length_penalty, which this does not.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        try:
            self.sampling_params()
        except ValueError as error:
            said = str(error).removeprefix("SamplingParams: ")
            name = "beam_width" + said.removeprefix("n") if said.startswith("n:") else said
            raise ValueError(f"BeamSearchParams: {name}") from None

    def sampling_params(self) -> SamplingParams:
        """Those of the request."""
        return SamplingParams(
            n=self.beam_width,
            use_beam_search=True,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            include_stop_str_in_output=self.include_stop_str_in_output,
            early_stopping=self.early_stopping,
            logprobs=0,
            detokenize=False,
        )


@dataclass(slots=True)
class BeamSearchSequence:
    """An answer. tokens: of prompt and output; text: theirs, with special tokens, None without a tokenizer.
    logprobs: of each token of the output, with the end-of-sequence token; cum_logprob: their sum."""

    tokens: list[int]
    logprobs: list[TokenLogprobs]
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The answers to a prompt, best first. error: why there are none, which vLLM would raise."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)
    error: str | None = None

    @classmethod
    def of(cls, output: RequestOutput, params: BeamSearchParams, tokenizer: Tokenizer | None) -> BeamSearchOutput:
        """Of a request with params.sampling_params()."""
        if output.error is not None:
            return cls(error=output.error)
        found = cls()
        for answer in output.outputs:
            ended = answer.finish_reason == "stop" and not params.include_stop_str_in_output
            tokens = output.prompt_token_ids + answer.token_ids[: len(answer.token_ids) - ended]
            text = None if tokenizer is None else tokenizer.decode(tokens, skip_special_tokens=False)
            total, reason = answer.cumulative_logprob or 0.0, answer.finish_reason
            found.sequences.append(
                BeamSearchSequence(tokens, answer.logprobs or [], total, text, reason, answer.stop_reason)
            )
        return found
