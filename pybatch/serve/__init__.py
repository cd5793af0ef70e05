"""The HTTP doors onto the engine and the jobs, in the protocols of OpenAI and Anthropic."""
