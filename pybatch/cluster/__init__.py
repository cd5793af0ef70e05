"""Bulk jobs on many machines, through Ray."""
