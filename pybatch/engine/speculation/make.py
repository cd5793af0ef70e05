"""An engine's speculator, as its settings have it."""

from __future__ import annotations

from pybatch.engine.speculation.ngram import NgramProposer
from pybatch.engine.speculation.speculator import Speculator
from pybatch.engine.speculative_config import SpeculativeConfig


def make_speculator(settings: SpeculativeConfig, *, max_tokens: int) -> Speculator:
    """max_tokens: of a step."""
    assert settings.prompt_lookup_min is not None
    assert settings.prompt_lookup_max is not None
    proposer = NgramProposer(settings.prompt_lookup_min, settings.prompt_lookup_max)
    return Speculator(
        proposer,
        most=settings.num_speculative_tokens,
        max_tokens=max_tokens,
        adaptive=settings.adaptive,
    )
