"""An engine's speculator, as its settings have it."""

from __future__ import annotations

from pybatch.engine.config import EngineConfig
from pybatch.engine.speculation.draft_model import DraftModelProposer
from pybatch.engine.speculation.ngram import NgramProposer
from pybatch.engine.speculation.proposer import Proposer
from pybatch.engine.speculation.speculator import Speculator
from pybatch.engine.speculation.suffix import SuffixProposer
from pybatch.model.decoder import Decoder


def make_speculator(
    config: EngineConfig, draft_decoder: Decoder | None, *, vocab_size: int, num_blocks: int, max_model_len: int
) -> Speculator | None:
    """None where there is no speculative_config. vocab_size, max_model_len: the large model's. num_blocks: of its KV
    pool; a draft model gets one of as many tokens."""
    settings = config.speculation
    if settings is None:
        return None
    proposer: Proposer
    model = settings.method == "draft_model"
    if model:
        if draft_decoder is None:
            raise ValueError("speculative_config: model: expected it to be loaded: give the engine its decoder")
        if draft_decoder.config.vocab_size != vocab_size:
            raise ValueError(
                f"speculative_config: model: expected a vocabulary of {vocab_size} tokens, as the model's is, "
                f"got {draft_decoder.config.vocab_size}"
            )
        proposer = DraftModelProposer(draft_decoder, config, num_blocks=num_blocks, max_model_len=max_model_len)
    elif settings.method == "suffix":
        proposer = SuffixProposer()
    else:
        assert settings.prompt_lookup_min is not None
        assert settings.prompt_lookup_max is not None
        proposer = NgramProposer(settings.prompt_lookup_min, settings.prompt_lookup_max)
    return Speculator(
        proposer,
        most=settings.num_speculative_tokens,
        max_tokens=config.max_num_batched_tokens,
        adaptive=settings.adaptive,
        costly=model,
    )
