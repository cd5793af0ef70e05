"""Decides who runs when, and in which KV blocks: plain Python, without torch."""
