"""Run language models over many prompts at once, fast and cheaply, on whatever machine there is."""

import torch as _torch  # noqa: F401  (loads the libraries that the native parts link against)
