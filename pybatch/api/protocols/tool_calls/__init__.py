"""Calls of tools in what a model says: the forms that models write them in, and a reader of texts in pieces."""
