"""Variants of a prompt, or of a model, compared: the same rows and seeds, scores, and what chance could have done."""
