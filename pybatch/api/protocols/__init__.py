"""The bodies of OpenAI's and Anthropic's requests and responses, as plain dicts: for batch files and for HTTP."""
