"""The order in which rows enter the engine."""
