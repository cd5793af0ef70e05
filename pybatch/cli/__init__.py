"""The pybatch command, one module a command."""

from pybatch.cli.main import main

__all__ = ["main"]
