"""The formats of rows and their results."""
