from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be found, read or run here; the message says why and what would do."""
