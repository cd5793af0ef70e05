"""Outputs that match a JSON schema, a regular expression, a choice or a grammar, through llguidance."""
