"""A scheduled step on the device: batch, model, KV cache, sampling, text."""
