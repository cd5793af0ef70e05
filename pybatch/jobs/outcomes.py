"""Moved to pybatch.api.outcomes; this name goes once nothing imports it."""

from pybatch.api.outcomes import Answer, Failure, Outcome, Sample, outcome_of, positions

__all__ = ["Answer", "Failure", "Outcome", "Sample", "outcome_of", "positions"]
