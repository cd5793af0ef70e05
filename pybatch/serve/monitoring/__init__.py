"""What people and programs may see of a running server: metrics, requests, the log, traces. Never what prompts say."""
