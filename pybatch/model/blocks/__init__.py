"""What layers are made of: the mixers of tokens, and what follows them."""
