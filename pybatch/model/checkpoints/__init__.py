"""Where weights come from: safetensors and GGUF files, and where those are."""
