"""A model that several processes hold together: the engine's leads, the others follow."""
