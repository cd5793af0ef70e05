"""The Python interface: LLM and AsyncLLM, and what a prompt may be."""
