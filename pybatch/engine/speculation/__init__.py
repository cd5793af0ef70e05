"""Speculative decoding (Leviathan et al. 2023): drafts of a sequence's next tokens, verified in one step."""
