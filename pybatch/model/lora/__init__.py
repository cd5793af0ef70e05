"""LoRA adapters that requests choose: beside the weights, mixed in a batch."""
