"""What an answer is worth: by comparison with a text, a pattern or a number of its row, by a schema, by a function."""
